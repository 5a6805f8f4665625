"""Draw findings of one rule at random from released packages, as a table to be judged by hand.

    python tools/audit_sample.py unmasked-load --count 15 --seed 1 fla-core==0.6.0=TREE sglang==0.5.8.post1=TREE

Each package is a label and the folder where it lies unpacked. The table goes to docs/precision/NAME.md, where the last
two columns are filled in by whoever reads the code: right or wrong, and why.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from deltaproof.audit.model.project import Project  # noqa: E402
from deltaproof.audit.model.source import Unreadable  # noqa: E402
from deltaproof.audit.registry import all_rules, find  # noqa: E402
from deltaproof.audit.rule import Hit, Rule  # noqa: E402


def findings(rule: Rule, root: Path) -> list[Hit]:
    """Return what a rule finds in a tree, by path and line."""
    paths = sorted(root.rglob("*.py"))
    project = Project(root, paths)
    found: list[Hit] = []
    for path in paths:
        try:
            module = project.module(path)
        except Unreadable:
            continue
        if module.is_test and not rule.tests:
            continue
        if not rule.triggers or any(trigger in module.text for trigger in rule.triggers):
            found += [seen for seen in rule.check(module, project) if isinstance(seen, Hit)]
    return found


def cell(text: str) -> str:
    """Return text that can stand in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rule", help="name or code of the rule")
    parser.add_argument("packages", nargs="+", metavar="LABEL=TREE")
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rule = find(options.rule, all_rules())
    if rule is None:
        parser.error(f"no rule is called {options.rule}")
    drawn: list[tuple[str, Hit]] = []
    for package in options.packages:
        label, _, tree = package.rpartition("=")
        drawn += [(label, hit) for hit in findings(rule, Path(tree))]
    total = len(drawn)
    if total > options.count:
        drawn = random.Random(options.seed).sample(drawn, options.count)
    labels = ", ".join(package.rpartition("=")[0] for package in options.packages)
    print(
        f"# {rule.name} ({rule.code})\n\n{total} findings in {labels}; {len(drawn)} drawn with seed {options.seed}.\n"
    )
    print("| package | place | line | said | verdict | reason |\n| --- | --- | --- | --- | --- | --- |")
    for label, hit in drawn:
        place = f"{hit.module.path}:{getattr(hit.node, 'lineno', 0)}"
        print(f"| {label} | {place} | `{cell(hit.module.quote(hit.node))}` | {cell(hit.message)} |  |  |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
