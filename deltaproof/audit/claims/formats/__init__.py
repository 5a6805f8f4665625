"""Readers of reports, one a format; the one that finds most claims reads a report."""

from __future__ import annotations

from deltaproof.audit.claims.claim import Reading
from deltaproof.audit.claims.formats import file_by_file, pattern_scan, review_bot

READERS = (pattern_scan.read, review_bot.read, file_by_file.read)
"""In the order in which they are preferred when two find as many claims."""


def read(text: str) -> Reading:
    """Return the claims of a report; none, and all of it prose, where it has no known format."""
    readings = [reader(text) for reader in READERS]
    return max(readings, key=lambda reading: (sum(not claim.nothing for claim in reading.claims), len(reading.claims)))
