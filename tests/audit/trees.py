"""Small source trees, and an audit of them by the rule for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltaproof.audit.engine import run
from deltaproof.audit.own_rules import OWN_RULES
from deltaproof.reports.audit import AuditReport
from tests.audit.rule_for_tests import RULE

HEAD = "import triton\nimport triton.language as tl\n\n\n"
RULES = (RULE, *OWN_RULES)


def kernel(name: str = "kernel", statement: str = "b = tl.load(p)") -> str:
    """Return the source of a kernel with one statement, a load without a mask unless another is given."""
    return f"@triton.jit\ndef {name}(p):\n    {statement}\n\n\n"


def lay_out(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files below ``root`` and return it."""
    for name, content in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def audit(root: Path, targets: Sequence[Path] | None = None, **options: Any) -> AuditReport:
    """Audit a tree, or targets in it, in one process and without a cache unless told otherwise."""
    settings: dict[str, Any] = {"rules": RULES, "root": root, "jobs": 1, **options}
    return run([root] if targets is None else targets, **settings)
