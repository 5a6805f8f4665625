"""A report as lines: which are text, which stand in a fence, and what a line says without its markup."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

LONGEST_LINE = 20_000
"""Characters of a line that are read; no person and no model writes longer ones."""

_FENCE = re.compile(r"^\s{0,12}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$")
_QUOTED = re.compile(r"^\s{0,3}(?:>\s?)+")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>|<!--.*?-->")
_BULLET = re.compile(r"^\s*(?:[-*+]\s+|\d{1,3}[.)]\s+|#{1,6}\s+)+")
_MARKS = re.compile(r"[*_\[\]]{1,3}")
_PICTURE = re.compile(r"[^\x00-\x7f]+")


@dataclass(frozen=True)
class Line:
    """One line of a report.

    Attributes:
        number: from 1.
        text: without the marks of a quotation and without HTML tags; in a fence as it is.
        fence: the block it stands in, counted from 1; 0 for text. The fence's own lines are left out of a report.
        language: what the fence says its text is.
    """

    number: int
    text: str
    fence: int = 0
    language: str = ""

    @property
    def bare(self) -> str:
        """The text without bullets, emphasis, brackets and pictures, for looking at its first words."""
        text = _BULLET.sub("", _MARKS.sub("", _PICTURE.sub(" ", self.text)))
        return " ".join(_BULLET.sub("", text).split())

    @property
    def level(self) -> int:
        """Depth of a heading; 0 for other lines."""
        if self.fence:
            return 0
        stripped = self.text.lstrip()
        depth = len(stripped) - len(stripped.lstrip("#"))
        return depth if 1 <= depth <= 6 and stripped[depth : depth + 1] in (" ", "\t", "") else 0

    @property
    def rule(self) -> bool:
        """Whether it is a horizontal rule."""
        return not self.fence and re.fullmatch(r"\s{0,3}(?:-{3,}|\*{3,}|_{3,})\s*", self.text) is not None


def lines(text: str, begins: Callable[[str], bool]) -> list[Line]:
    """Return the lines of a report.

    Args:
        text: the report.
        begins: whether a line surely begins a claim or a section: it closes a fence that nobody closed.
    """
    found: list[Line] = []
    fence, count, language, mark = 0, 0, "", ""
    for number, raw in enumerate(text.split("\n"), 1):
        whole = raw[:LONGEST_LINE]
        outer = _QUOTED.sub("", whole)
        opening = _FENCE.match(outer)
        if fence:
            closes = opening and not opening[2] and opening[1][0] == mark[0] and len(opening[1]) >= len(mark)
            if closes:
                fence = 0
                continue
            torn = (opening and opening[2] and opening[1][0] == mark[0]) or begins(outer)
            if not torn:
                found.append(Line(number, outer if whole.lstrip().startswith(">") else whole, fence, language))
                continue
            fence = 0
        if opening:
            count += 1
            fence, language, mark = count, opening[2].lower(), opening[1]
            continue
        found.append(Line(number, _TAG.sub(" ", outer).rstrip()))
    return found


def paragraphs(left: list[Line]) -> int:
    """Return how many paragraphs some lines make, headings and rules left out."""
    count, before = 0, -1
    for line in left:
        if line.fence or line.level or line.rule or not line.text.strip():
            continue
        count += line.number != before + 1
        before = line.number
    return count
