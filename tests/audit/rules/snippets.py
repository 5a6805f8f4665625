"""Running one rule on pieces of source."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory

from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Drop, Hit, Rule, Seen

HEADER = "import torch\nimport triton\nimport triton.language as tl\n"
_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def seen(rule: Rule, code: str, name: str = "code.py", **others: str) -> list[Seen]:
    """Return what a rule sees in a piece of source, with other files beside it (``model="..."`` is model.py)."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for file, text in {name: code, **{f"{other}.py": text for other, text in others.items()}}.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(HEADER + textwrap.dedent(text), encoding="utf-8")
        project = Project(root, sorted(root.rglob("*.py")))
        module = project.module(root / name)
        if rule.triggers and not any(trigger in module.text for trigger in rule.triggers):
            return []
        return list(rule.check(module, project))


def hits(rule: Rule, code: str, name: str = "code.py", **others: str) -> list[Hit]:
    """Return the findings of a rule in a piece of source."""
    return [each for each in seen(rule, code, name, **others) if isinstance(each, Hit)]


def drops(rule: Rule, code: str, name: str = "code.py", **others: str) -> list[Drop]:
    """Return the candidates that a rule dropped in a piece of source."""
    return [each for each in seen(rule, code, name, **others) if isinstance(each, Drop)]


def examples(rule: Rule) -> tuple[str, str]:
    """Return the bad and the good example of a rule's docstring."""
    blocks = _BLOCK.findall(sys.modules[type(rule).__module__].__doc__ or "")
    assert len(blocks) >= 2, "a rule's docstring holds a bad and a good example"
    return blocks[0], blocks[1]
