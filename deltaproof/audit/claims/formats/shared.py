"""Pieces of grammar that several formats share: line numbers, severities, labels, paths."""

from __future__ import annotations

import re

from deltaproof.audit.claims.blocks import Line
from deltaproof.audit.claims.claim import Claim

SPAN = r"~?\s*[Ll]?(\d{1,9})(?:\s*(?:-{1,2}|to|through|and|:)\s*~?[Ll]?(\d{1,9}))?"
"""A line or a range of lines, as two groups."""

PATH = r"(?:[A-Za-z]:)?[\w.@+~-]*(?:[\\/][\w.@+~ -]*?[\w.@+~-])*\.[A-Za-z]\w{0,5}"
"""A path of a file with an ending."""

_LABEL = re.compile(r"^([A-Za-z][\w /()&'-]{0,58}?)\s*(?::|--?\s|$)")
_FIX = re.compile(
    r"\b(?:fix(?:es)?|recommendations?|remediation|solutions?|suggestions?|suggested \w+|proposed \w+|patch|"
    r"corrected \w+|recommended \w+|how to fix|committable)\b",
    re.IGNORECASE,
)
_ISSUE = re.compile(
    r"^(?:issues?(?: description)?|problems?|why|descriptions?|details?|impact|evidence|finding|code|current code)\b",
    re.IGNORECASE,
)
_SUMMARY = re.compile(
    r"^(?:overall\s+)?(?:summary|conclusions?|assessment|overall|next steps|verdict)\b(?:[\w /-]{0,40})$", re.IGNORECASE
)
_MOST_LABEL_WORDS = 5


def span(first: str, last: str | None) -> tuple[int, int]:
    """Return a range of lines in order; "40-31" is 31 to 40."""
    start = int(first)
    end = int(last) if last else start
    return (start, end) if start <= end else (end, start)


def label(line: Line) -> str:
    """Return the words that label a line ("Fix Suggestion" of ``**Fix Suggestion:** keep``); empty if none do."""
    text = line.text.strip().lstrip(">").strip()
    bare = line.bare
    found = _LABEL.match(bare)
    if found is None or len(found[1].split()) > _MOST_LABEL_WORDS:
        return ""
    # Without a colon only a line, bold words or bracketed words of their own are a label.
    marked = re.match(r"^(?:[-*+]\s+|\d{1,3}[.)]\s+|#{1,6}\s+)*(?:\*\*|__|\[)", text) is not None
    rest = bare[len(found[1]) :].lstrip()
    return found[1] if rest.startswith(":") or marked or line.level else ""


def bracketed(line: Line) -> str:
    """Return the words in the brackets or bold marks that begin a line, where text follows without a colon."""
    found = re.match(r"^\s*(?:[-+]\s+)?(?:\*\*)?\[?([A-Za-z][\w /()-]{1,58})(?:\]|\*\*)", line.text)
    return found[1] if found and len(found[1].split()) <= _MOST_LABEL_WORDS else ""


def opens_fix(line: Line) -> bool:
    """Whether a proposed fix begins in this line."""
    words = label(line) or bracketed(line)
    return bool(words) and _FIX.search(words) is not None and not _ISSUE.match(words)


def opens_issue(line: Line) -> bool:
    """Whether the words about what is wrong begin in this line."""
    words = label(line) or bracketed(line)
    return bool(words) and _ISSUE.match(words) is not None and not _FIX.search(words)


def opens_summary(line: Line) -> bool:
    """Whether a summary begins in this line."""
    words = (label(line) or (line.bare if line.level else "")).rstrip(" :")
    return bool(words) and _SUMMARY.match(words) is not None


class Body:
    """Collects the words and excerpts of one claim, and leaves its proposed fix out."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self._fix = False
        self._fence = 0

    def add(self, line: Line, *, as_text: bool = False) -> None:
        """Take one line; with ``as_text`` a line in a fence counts as words."""
        if line.fence and not as_text:
            if self._fix or line.language in ("diff", "suggestion", "patch"):
                return
            if line.fence != self._fence:
                self._fence = line.fence
                self.claim.excerpts.append(line.text)
            else:
                self.claim.excerpts[-1] += "\n" + line.text
            return
        if opens_fix(line):
            self._fix = True
        elif opens_issue(line):
            self._fix = False
        if not self._fix:
            self.claim.prose.append(line.text.strip())
