"""Which claims say the same as an earlier one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from deltaproof.audit.claims.claim import Claim
from deltaproof.audit.claims.grounding import Hit
from deltaproof.audit.claims.quotes import own_words, quotes
from deltaproof.audit.claims.view import View

_MOST_ALIKE = 64
"""Earlier claims of one file that a claim is compared with."""


@dataclass(frozen=True)
class _Said:
    index: int
    claim: Claim
    quoted: frozenset[tuple[str, ...]]
    words: tuple[str, ...]
    place: tuple[int, int, tuple[str, ...]] | None


def repeated(claims: list[Claim], places: Sequence[tuple[Hit | None, View | None]]) -> list[int | None]:
    """Return for each claim the index, from 1, of the claim that it repeats, or None.

    Two claims about one file are one if the same quote of theirs stands in the same place, if they name the same
    lines and quote the same code, or say the same where one of them quotes none, or if the report itself makes the
    later one a duplicate of those lines.
    """
    known: dict[str, list[_Said]] = defaultdict(list)
    found: list[int | None] = []
    for index, (claim, (hit, view)) in enumerate(zip(claims, places, strict=True), 1):
        place = None if hit is None else (hit.match.first, hit.match.last, hit.quote.words)
        said = _Said(index, claim, frozenset(quote.words for quote in quotes(claim)), own_words(claim), place)
        alike = known[claim.path if view is None else view.path]
        first = next((other.index for other in alike if _same(other, said)), None)
        found.append(first)
        if first is None:
            alike.append(said)
            del alike[:-_MOST_ALIKE]
    return found


def _same(one: _Said, other: _Said) -> bool:
    a, b = one.claim, other.claim
    if a.nothing or b.nothing:
        return bool(a.nothing and b.nothing)
    if (a.excerpts and b.excerpts and a.title != b.title) or (a.severity and b.severity and a.severity != b.severity):
        return False
    if (a.first, a.last) != (b.first, b.last):
        # "Also applies to" names a further place, wherever its quote stands.
        return one.place is not None and one.place == other.place and not (a.also or b.also)
    if one.place is not None and one.place == other.place:
        return True
    if b.duplicate or (b.prompt and not a.prompt) or one.quoted & other.quoted:
        return True
    return not (one.quoted and other.quoted) and one.words == other.words
