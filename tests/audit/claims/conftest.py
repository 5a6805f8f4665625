"""The source tree that the sample reports are about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deltaproof.audit.claims import check_claims
from deltaproof.reports.claims import ClaimsReport

SAMPLES = Path(__file__).parent / "samples"

RING = '''class Ring:
    """Slots in a ring.

    >>> ring.head = (ring.head + 1) % ring.rows
    """

    def push(self, row):
        # self.data[self.head] = before
        self.head = (self.head + 1) % self.rows
        self.data[self.head] = row


if __name__ == "__main__":
    ring = Ring()
    ring.push(row=None)
'''

TABLE = """def merge(left, right):
    # The sign is lost.
    total = left | right
    return total
"""

TEST = """def test_ring():
    ring = make()
    assert ring.head == 1
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for path, text in {"pool/ring.py": RING, "pool/table.py": TABLE, "tests/test_ring.py": TEST}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.fixture
def check(tree: Path, tmp_path: Path) -> Callable[..., ClaimsReport]:
    """Check a report given as text or bytes against the tree."""

    def run(report: str | bytes, fixed: Path | None = None) -> ClaimsReport:
        path = tmp_path / "report.md"
        path.write_bytes(report if isinstance(report, bytes) else report.encode())
        return check_claims(path, tree, fixed)

    return run


def issue(path: str, line: int | str, words: str) -> str:
    """Return a report of one claim in the file-by-file format."""
    return f"# Audit\n\n## {path}\n[Severity: HIGH]\n[Line {line}]\n**Issue:** {words}\n"
