"""Write docs/audit-accuracy.md: how often rules hit labelled bugs, how precise they are, how much noise they make.

    python tools/audit_accuracy.py --scores FOLDER fla-core==0.6.0=TREE sglang==0.5.8.post1=TREE

FOLDER holds what tools/audit_rows.py wrote for each set of rows in benchmarks/audit/, under the set's own name. Each
package is a label and the folder where it lies unpacked. Precision is counted in docs/precision/.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from deltaproof.audit.engine import run  # noqa: E402
from deltaproof.audit.registry import all_rules  # noqa: E402

ROWS = ROOT / "benchmarks" / "audit"
PAGE = """# How accurate the auditor is

Written by these commands, for each set of rows in `benchmarks/audit/`; each package is unpacked from its wheel:

```
python tools/audit_rows.py benchmarks/audit/labelled.jsonl --repos mirrors --fetch --output scores/labelled.jsonl
python tools/audit_accuracy.py --scores scores LABEL=TREE ...
```
"""
LABELLED = """\
Real bugs of public repositories, each with the commit that fixed it, that could be read while the rules were written.
*Hit*: a finding with the bug's code stands at its lines or in its function. *Told apart*: fewer of them stand there
after the fix.
"""
UNSEEN = """\
More bugs, from other fixes, labelled from the fixes alone before any rule was run on them. *At first* is what the rules
of that day found of them: what to expect of code that nobody had in sight. The rules were then widened with these bugs
in sight, so *now* says less about other code.
"""
RULES = """\
*Judged* counts findings in public code that were drawn at random and read by hand ([how](precision)); *right* is the
share that holds. A rule with fewer than eight of them, or with less than 80 % right, stays in preview. The other
columns count findings in released packages, with rules in preview.
"""
VERDICT = re.compile(r"\|\s*(right|wrong)\s*\|[^|]*\|\s*$")


def precision(text: str) -> tuple[int, int]:
    """Return how many findings of a page were judged right, and how many were judged."""
    verdicts = [found.group(1) for line in text.splitlines() if (found := VERDICT.search(line))]
    return verdicts.count("right"), len(verdicts)


def percent(part: int, whole: int) -> str:
    """Return a share in per cent, or a dash."""
    return f"{100 * part / whole:.0f} %" if whole else "–"


def read(path: Path) -> list[dict[str, object]]:
    """Return the scores of a file, one a row."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def labelled(rows: list[dict[str, object]]) -> list[str]:
    """Return the table of the labelled rows, by code."""
    lines = ["| code | rows | hit | fixed rows | told apart |", "| --- | ---: | ---: | ---: | ---: |"]
    total: Counter[str] = Counter()
    for code in sorted({str(row["code"]) for row in rows}):
        mine = [row for row in rows if row["code"] == code]
        judged = [row for row in mine if row["discriminated"] is not None]
        hit, apart = sum(bool(row["hit"]) for row in mine), sum(bool(row["discriminated"]) for row in judged)
        lines.append(f"| {code} | {len(mine)} | {hit} | {len(judged)} | {apart} |")
        total.update(rows=len(mine), hit=hit, judged=len(judged), apart=apart)
    hits, told = percent(total["hit"], total["rows"]), percent(total["apart"], total["judged"])
    lines.append(f"| all | {total['rows']} | {total['hit']} ({hits}) | {total['judged']} | {total['apart']} ({told}) |")
    return lines


def unseen(scores: Path) -> list[str]:
    """Return the table of the sets that nobody had seen, and one by code of what was found of them at first."""
    lines = ["| set | rows | hit at first | told apart at first | hit now | told apart now |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    every: list[dict[str, object]] = []
    for kept in sorted(ROWS.glob("unseen-*.first.jsonl")):
        name = kept.name.removesuffix(".first.jsonl")
        first, now = read(kept), read(scores / f"{name}.jsonl")
        every += first
        cells = [sum(bool(row[key]) for row in rows) for rows in (first, now) for key in ("hit", "discriminated")]
        shares = [f"{cell} ({percent(cell, len(first))})" for cell in cells]
        lines.append(f"| [{name}](../benchmarks/audit/{name}.jsonl) | {len(first)} | {' | '.join(shares)} |")
    return [*lines, "", "At first, by code:", "", *labelled(every)]


def main() -> int:
    """Write the page and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", metavar="LABEL=TREE")
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "audit-accuracy.md")
    options = parser.parse_args()
    rules = all_rules()
    counts: dict[str, Counter[str]] = {}
    kernels: dict[str, int] = {}
    for package in options.packages:
        label, _, tree = package.rpartition("=")
        report = run([Path(tree)], rules, root=Path(tree))
        counts[label] = Counter(finding.name for finding in report.findings)
        kernels[label] = report.analysed.kernels
    lines = [PAGE, "## Labelled public bugs", "", LABELLED, *labelled(read(options.scores / "labelled.jsonl")), ""]
    lines += ["## Bugs that nobody had in sight", "", UNSEEN, *unseen(options.scores), "", "## Rules", "", RULES]
    head = ["rule", "code", "state", "judged", "right", *counts]
    lines += [f"| {' | '.join(head)} |", "| " + " | ".join(["---"] * 3 + ["---:"] * (len(head) - 3)) + " |"]
    stable: Counter[str] = Counter()
    for rule in rules:
        page = ROOT / "docs" / "precision" / f"{rule.name}.md"
        right, judged = precision(page.read_text()) if page.exists() else (0, 0)
        found = [str(counts[label][rule.name]) for label in counts]
        state = "stable" if rule.stable else "preview"
        lines.append(
            f"| {rule.name} | {rule.code} | {state} | {judged} | {percent(right, judged)} | {' | '.join(found)} |"
        )
        for label in counts:
            stable[label] += counts[label][rule.name] * rule.stable
    for name, numbers in (("all rules", {label: sum(counts[label].values()) for label in counts}), ("stable", stable)):
        cells = [f"{numbers[label]} ({numbers[label] / max(kernels[label], 1):.2f} a kernel)" for label in counts]
        lines.append(f"| {name} |  |  |  |  | {' | '.join(cells)} |")
    options.output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
