"""Score the auditor on labelled public bugs: is the bug named, and is the fixed code told apart from it?

    python tools/audit_rows.py benchmarks/audit/labelled.jsonl --repos mirrors --fetch --output scores/labelled.jsonl

A row names a repository, the commit that fixed a bug and that commit's parent, the file and the lines at the parent,
and the hazard. No code is kept with it. The mirrors are bare repositories, `mirrors/OWNER+NAME/repo`; `--fetch` clones
those that are missing.

A row is a hit when a finding with its code lies within three lines of the labelled ones at the parent, or inside the
labelled function. It is told apart when the same function has fewer such findings after the fix. Rows that only running
shows ("dynamic") are left out; a row without a fix is scored for hits only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

SLACK = 3
Row = dict[str, Any]


class Trees:
    """The packages of mirrored repositories, laid out by commit, and what the auditor says of their files."""

    def __init__(self, repos: Path, where: Path, fetch: bool) -> None:
        """Lay trees out below ``where``; clone what ``repos`` lacks if ``fetch``."""
        self.repos, self.where, self.fetch = repos, where, fetch
        self._found: dict[tuple[Path, str], list[Row]] = {}

    def mirror(self, name: str) -> Path | None:
        """Return the bare repository of a name such as ``owner/project``, or None."""
        at = self.repos / name.replace("/", "+") / "repo"
        if not at.exists() and self.fetch:
            url = f"https://github.com/{name}"
            subprocess.run(["git", "clone", "--quiet", "--bare", url, str(at)], check=True)
        return at if at.exists() else None

    def lay_out(self, mirror: Path, commit: str, path: str) -> Path:
        """Lay out the first folder of a path at a commit, once, and return the root."""
        top = path.split("/")[0]
        root = self.where / f"{mirror.parent.name}-{commit[:16]}-{top}"
        if not root.exists():
            root.mkdir()
            archive = subprocess.run(
                ["git", f"--git-dir={mirror}", "archive", commit, top], capture_output=True, check=True
            )
            subprocess.run(["tar", "-x", "-C", str(root)], input=archive.stdout, check=True)
        return root

    def findings(self, root: Path, path: str) -> list[Row]:
        """Return what the auditor, with rules in preview, finds in a file of a tree."""
        if (root, path) not in self._found:
            output = self.where / "findings.json"
            output.unlink(missing_ok=True)
            command = [sys.executable, "-m", "deltaproof", "audit", str(root / path), "--root", str(root)]
            command += ["--preview", "--no-cache", "--format", "json", "--output", str(output)]
            done = subprocess.run(command, capture_output=True, text=True)
            if not output.exists():
                raise SystemExit(f"the auditor failed on {root / path}: {done.stderr.strip()[-400:]}")
            self._found[root, path] = json.loads(output.read_text())["findings"]
        return self._found[root, path]


def matching(findings: list[Row], row: Row) -> tuple[list[Row], list[Row]]:
    """Return the findings of a row's hazard near its lines, and those inside its function."""
    first, last = row["lines"]
    same = [each for each in findings if each["code"] == row["hazard"]]
    name = row["function"].split(".")[-1]
    near = [each for each in same if each["line"] <= last + SLACK and each["end_line"] >= first - SLACK]
    return near, [each for each in same if (each["function"] or "").split(".")[-1] == name]


def score(trees: Trees, mirror: Path, row: Row) -> Row:
    """Return a row's score: findings near it, whether it is hit, and whether the fix is told apart."""
    old = trees.lay_out(mirror, row["parent_commit"], row["file"])
    near, inside = matching(trees.findings(old, row["file"]), row)
    hit, apart = bool(near or inside), None
    if row["fix_commit"]:
        new = trees.lay_out(mirror, row["fix_commit"], row["file"])
        if (new / row["file"]).exists():
            after = matching(trees.findings(new, row["file"]), row)[1]
            apart = hit and len(after) < max(len(inside), 1)
    return {"id": row["id"], "code": row["hazard"], "near": len(near), "hit": hit, "discriminated": apart}


def main() -> int:
    """Score the rows and print a table by code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, nargs="+")
    parser.add_argument("--repos", type=Path, required=True)
    parser.add_argument("--fetch", action="store_true", help="clone repositories that are missing")
    parser.add_argument("--select", help="only this hazard's rows")
    parser.add_argument("--output", type=Path, help="write one score a line")
    options = parser.parse_args()
    rows = [json.loads(line) for path in options.rows for line in path.read_text().splitlines() if line.strip()]
    rows = [row for row in rows if row["detectability"] != "dynamic" and row["hazard"].startswith("HZ")]
    scores, skipped = [], Counter[str]()
    with tempfile.TemporaryDirectory() as where:
        trees = Trees(options.repos, Path(where), options.fetch)
        for row in rows:
            if options.select and row["hazard"] != options.select:
                continue
            mirror = trees.mirror(row["repo"])
            if mirror is None:
                skipped[row["repo"]] += 1
                continue
            scores.append(score(trees, mirror, row))
    for name, count in skipped.items():
        print(f"skipped {count} rows: {options.repos} has no {name.replace('/', '+')}/repo", file=sys.stderr)
    print(f"{'code':8} {'rows':>5} {'hit':>5} {'told apart':>11}")
    for code in [*sorted({each["code"] for each in scores}), "all"]:
        mine = [each for each in scores if code in (each["code"], "all")]
        judged = [each for each in mine if each["discriminated"] is not None]
        apart = sum(each["discriminated"] for each in judged)
        print(f"{code:8} {len(mine):5} {sum(each['hit'] for each in mine):5} {apart:5}/{len(judged)}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text("".join(json.dumps(each) + "\n" for each in scores))
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
