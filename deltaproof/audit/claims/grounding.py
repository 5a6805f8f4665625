"""Looking for one quote in one file: as tokens of code first, then as words, and line by line for an excerpt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from deltaproof.audit.claims.lexing import line_key
from deltaproof.audit.claims.quotes import LEAST_TOKENS, Quote
from deltaproof.audit.claims.view import Match, Role, View

NEAR = 3
"""Lines that a quote may stand off the line said."""
_SHARE = 0.75
"""Of an excerpt's lines, how many must stand in the file in the same places to one another."""


@dataclass(frozen=True)
class Hit:
    """A quote that stands in a file.

    Attributes:
        quote: the quote.
        match: where, and what it is there.
        distance: lines to the range said; 0 if the claim names no line.
        whole: whether all lines of an excerpt of several lines match, which says the place by itself.
    """

    quote: Quote
    match: Match
    distance: int
    whole: bool

    @property
    def runs(self) -> bool:
        """Whether the quoted text is code that the program runs."""
        return self.match.role == "code"


def locate(quote: Quote, view: View, first: int | None, last: int | None) -> Hit | None:
    """Return where a quote stands, the place nearest to the lines said; None if it is not in the file."""
    if quote.weak and first is None:
        return None
    several = "\n" in quote.text.strip()
    found = _matches(quote, view)
    whole = several and bool(found)
    if several and not found:
        found = _aligned(quote, view)
        whole = bool(found)
    if not found:
        return None
    best = min(found, key=lambda match: (_distance(match, first, last), match.role != "code", match.first))
    distance = _distance(best, first, last)
    if distance > NEAR and (running := [match for match in found if match.role == "code"]):
        best = min(running, key=lambda match: _distance(match, first, last))
        distance = _distance(best, first, last)
    if quote.weak and distance > NEAR:
        return None
    if several and first is not None and distance == 0:
        best = _at_line(best, view, first, last or first)
    return Hit(quote, best, distance, whole)


def stands(quote: Quote, view: View) -> bool:
    """Return whether a quote stands anywhere in a file, also where that grounds nothing."""
    return bool(_matches(quote, view))


def rows_standing(quote: Quote, view: View) -> tuple[int, int]:
    """Return how many lines of an excerpt stand somewhere in a file, each by itself, and how many it has."""
    rows = quote.text.strip().split("\n")
    keys = [key for row in rows if len(rows) > 1 and len(key := line_key(row)) >= LEAST_TOKENS]
    return sum(bool(view.lines_alike(key)) for key in keys), len(keys)


def _matches(quote: Quote, view: View) -> list[Match]:
    found: list[Match] = []
    if len(quote.code) >= LEAST_TOKENS:
        found = view.find_code(list(quote.code), statement=quote.shape == "statement", name=quote.weak)
    if len(quote.words) >= LEAST_TOKENS:
        torn = quote.shape == "excerpt"
        found = found + [
            match
            for match in view.find_text(list(quote.words), dead=not torn)
            if all((match.first, match.last) != (other.first, other.last) for other in found)
        ]
    return found


def _at_line(match: Match, view: View, first: int, last: int) -> Match:
    """Return an excerpt's match with the role of the lines said, where the excerpt covers them."""
    low, high = max(first, match.first), min(last, match.last)
    role: Role | None = view.role_of_lines(low, high) if low <= high else None
    return Match(match.first, match.last, role or match.role)


def _aligned(quote: Quote, view: View) -> list[Match]:
    """Return where most lines of an excerpt stand as they do in the quote, a changed line here and there."""
    votes: Counter[int] = Counter()
    asked = 0
    for at, row in enumerate(quote.text.split("\n")):
        key = line_key(row)
        if len(key) >= LEAST_TOKENS:
            asked += 1
            votes.update(line - at for line in view.lines_alike(key))
    need = max(2, asked * _SHARE)
    rows = quote.text.count("\n")
    found = []
    for offset, count in votes.most_common(8):
        if count >= need:
            begin, end = max(1, offset), min(offset + rows, len(view.lines))
            found.append(Match(begin, end, view.role_of_lines(begin, end) or "code"))
    return found


def _distance(match: Match, first: int | None, last: int | None) -> int:
    if first is None:
        return 0
    return max(0, match.first - (last or first), first - match.last)
