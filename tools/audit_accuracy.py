"""Write docs/audit-accuracy.md: how often rules hit labelled bugs, how precise they are, how much noise they make.

    python tools/audit_accuracy.py --scores labelled.scores.jsonl --later later.scores.jsonl \\
        fla-core==0.6.0=TREE sglang==0.5.8.post1=TREE

The scores are what tools/audit_rows.py wrote for benchmarks/audit/labelled.jsonl and later.jsonl. Each package is a
label and the folder where it lies unpacked. Precision is counted in docs/precision/.
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

PAGE = """# How accurate the auditor is

Written by these commands; each package is unpacked from its wheel:

```
python tools/audit_rows.py benchmarks/audit/labelled.jsonl --repos mirrors --fetch --output labelled.scores.jsonl
python tools/audit_rows.py benchmarks/audit/later.jsonl --repos mirrors --fetch --output later.scores.jsonl
python tools/audit_accuracy.py --scores labelled.scores.jsonl --later later.scores.jsonl LABEL=TREE ...
```
"""
LABELLED = """\
Real bugs of public repositories, each with the commit that fixed it, that could be read while the rules were
written. *Hit*: a finding with the bug's code stands at its lines or in its function. *Told apart*: fewer of
them stand there after the fix.
"""
LATER = """\
{rows} more, taken from the fixes of nine repositories and labelled before any rule was run on them. The rules
as they stood then hit {hit} and told {apart} apart: that is what to expect of code that nobody had in sight.
"""
TUNED = """\
The rules were then widened with these rows in sight. What they find of them now says less about other code:
"""
RULES = """\
*Judged* counts findings in public code that were drawn at random and read by hand ([how](precision)); *right*
is the share that holds. A rule with fewer than eight of them, or with less than 80 % right, stays in preview.
The other columns count findings in released packages, with rules in preview.
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


def counted(rows: list[dict[str, object]]) -> dict[str, int]:
    """Return how many rows there are, are hit and told apart."""
    return {
        "rows": len(rows),
        "hit": sum(bool(row["hit"]) for row in rows),
        "apart": sum(bool(row["discriminated"]) for row in rows),
    }


def main() -> int:
    """Write the page and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", metavar="LABEL=TREE")
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--later", type=Path, required=True)
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
    first = read(ROOT / "benchmarks" / "audit" / "later-first.jsonl")
    lines = [PAGE, "## Labelled public bugs", "", LABELLED, *labelled(read(options.scores)), ""]
    lines += ["## Bugs labelled later", "", LATER.format(**counted(first)), *labelled(first), "", TUNED]
    lines += [*labelled(read(options.later)), "", "## Rules", "", RULES]
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
