"""What a newer tree did to the code that a claim quotes."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Literal

from deltaproof.audit.claims.grounding import Hit, locate
from deltaproof.audit.claims.lexing import line_key
from deltaproof.audit.claims.tree import Tree
from deltaproof.audit.claims.view import View

Fixed = Literal["stands", "code changed", "code gone"]
_WINDOW = 2_000
"""Lines around the quoted ones that are compared; more would be slow and say no more."""
_ALIKE = 0.5
"""Share of tokens that a line keeps when it counts as changed and not as another line."""


def compare(hit: Hit, old: View, newer: Tree) -> tuple[Fixed, str]:
    """Return whether quoted code of a tree stands in a newer one, and the reason."""
    paths, _ = newer.find(old.path)
    if not paths or old.path not in paths:
        return "code gone", "the file is not in the newer tree"
    new = newer.view(old.path)
    if isinstance(new, str):
        return "code changed", f"the file of the newer tree: {new}"
    then, now = _count(hit, old), _count(hit, new)
    if now >= then:
        return "stands", "the quoted code is in the newer tree as it was"
    return _lines(hit, old, new)


def _count(hit: Hit, view: View) -> int:
    quote = hit.quote
    statement = quote.shape == "statement"
    found = view.find_code(list(quote.code), statement=statement) if len(quote.code) > 1 else []
    if found:
        return len(found)
    return int(locate(quote, view, None, None) is not None)


def _lines(hit: Hit, old: View, new: View) -> tuple[Fixed, str]:
    """Follow the quoted lines through the difference of the two files."""
    begin = max(0, hit.match.first - 1 - _WINDOW)
    was = [line_key(row) for row in old.lines[begin : hit.match.last + _WINDOW]]
    now = [line_key(row) for row in new.lines[begin : hit.match.last + 2 * _WINDOW]]
    asked = range(hit.match.first - 1 - begin, hit.match.last - begin)
    fates: list[Fixed] = []
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, was, now, autojunk=False).get_opcodes():
        for at in asked:
            if i1 <= at < i2 and was[at]:
                if tag == "equal":
                    fates.append("stands")
                elif tag == "replace" and any(_near(was[at], other) for other in now[j1:j2]):
                    fates.append("code changed")
                else:
                    fates.append("code gone")
    if "code changed" in fates or len(set(fates)) > 1:
        return "code changed", "the newer tree has other code in this place"
    if fates and fates[0] == "stands":
        return "stands", "the quoted lines are in the newer tree as they were"
    return "code gone", "the newer tree has no such code"


def _near(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    return SequenceMatcher(None, left, right, autojunk=False).ratio() >= _ALIKE
