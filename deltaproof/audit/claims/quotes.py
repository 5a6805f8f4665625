"""What a claim quotes: the code in its excerpts and between backticks in its words."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from dataclasses import dataclass
from typing import Literal

from deltaproof.audit.claims.claim import Claim
from deltaproof.audit.claims.lexing import code, tokens, words

LEAST_TOKENS = 3
"""Shorter code is a name, and a name that exists says nothing."""
_LONGEST = 8_000
_MOST = 60
"""Quotes of one claim that are looked for."""

_INLINE = re.compile(r"(?<!`)(`{1,2})(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_PATH = re.compile(r"^@?[\w.+-]*(?:/[\w.+*-]+)+$|^[\w-]+\.(?:py|pyi|cu|cuh|cpp|cc|h|hpp|md|json|toml|yaml|yml|ts|js)$")
_OTHER_LANGUAGE = re.compile(r"\.(?!pyi?$)\w+$")
_SIGN = re.compile(r"[=(\[{<>+*/;-]")
_NAME = re.compile(r"^\w+$")
_DOTTED = re.compile(r"^((?:[^\W\d]\w*\.)*[^\W\d]\w*)(?:\(\s*(?:\.\.\.)?\s*\))?$")
_ELIDED = re.compile(r"^\s*(?:#\s*)?(?:\.\.\.|\[\.\.\.\]).*$|^\s*#.*\.\.\.\s*$")
# Words before a quote that make it what should stand there, not what does.
_PROPOSED = re.compile(
    r"(?:\b(?:replac\w*|chang\w*|switch\w*|convert\w*|renam\w*)\b[^.;]*\b(?:with|by|to|into)"
    r"|\b(?:should (?:be|use|read|become|have been)|consider|recommend\w*|prefer|suggest\w*)\b[^.;]*"
    r"|(?:^|[.;:(]\s*)(?:e\.g\.,?\s*)?(?:use|using|add|pass|write|try|set|do)\b[^.;`]*)\s*$",
    re.IGNORECASE,
)

Shape = Literal["expression", "statement", "excerpt"]


@dataclass(frozen=True)
class Quote:
    """A piece of code that a claim says is there.

    Attributes:
        text: as quoted, without the blanks around it.
        shape: an expression, one or more whole statements, or an excerpt that may be torn anywhere.
        weak: whether it says something only at the line said: a dotted name, or one statement of an excerpt.
        code: texts of its tokens without comments.
        words: all its words and signs.
    """

    text: str
    shape: Shape
    code: tuple[str, ...]
    words: tuple[str, ...]
    weak: bool = False


def quotes(claim: Claim) -> list[Quote]:
    """Return what a claim quotes, excerpts first; bare names, paths and what is no code are left out."""
    found: dict[tuple[str, ...], Quote] = {}
    python = _OTHER_LANGUAGE.search(claim.path) is None
    for excerpt in claim.excerpts:
        for piece in _of_excerpt(excerpt, python):
            found.setdefault(piece.words, piece)
    for words_of in "\n".join(claim.prose).split("\n\n"):
        for match in _INLINE.finditer(words_of):
            if _PROPOSED.search(words_of[max(0, match.start() - 120) : match.start()].replace("\n", " ")):
                continue
            quote = inline(match[2], python=python)
            if quote is not None:
                found.setdefault(quote.words, quote)
    return list(found.values())[:_MOST]


def own_words(claim: Claim) -> tuple[str, ...]:
    """Return what a claim says in its own words, without its quotes; its title where it says nothing else."""
    python = _OTHER_LANGUAGE.search(claim.path) is None
    prose = _INLINE.sub(lambda found: " " if inline(found[2], python=python) else found[0], "\n".join(claim.prose))
    return tuple(re.findall(r"\w+", prose.lower()) or re.findall(r"\w+", claim.title.lower()))


def inline(text: str, *, python: bool = True) -> Quote | None:
    """Return the quote between two backticks; None if it is a bare name, a path or no code.

    Python has to parse; of other languages all with a sign in it is taken for code.
    """
    text = " ".join(text.split())
    if not text or len(text) > _LONGEST or _PATH.match(text) or _NAME.match(text):
        return None
    dotted = _DOTTED.match(text)
    if dotted:
        # `a.b()` and `a.b(...)` in running words are ways to write the name.
        return _quote(text, "expression", _quote(dotted[1], "expression"), weak=True)
    shape = _shape(text)
    if shape is None and not python and _SIGN.search(text):
        shape = "excerpt"
    return None if shape is None else _quote(text, shape)


def _of_excerpt(text: str, python: bool) -> list[Quote]:
    """Return the pieces of an excerpt that no "..." parts, each as it stands, then their single statements."""
    pieces: list[list[str]] = [[]]
    for line in text.split("\n"):
        if _ELIDED.match(line):
            pieces.append([])
        else:
            pieces[-1].append(line)
    found: list[Quote | None] = []
    single: list[Quote | None] = []
    for piece in pieces:
        body = textwrap.dedent("\n".join(piece)).strip("\n")
        rows = [row.strip() for row in body.split("\n") if row.strip()]
        if len(rows) == 1:
            found.append(
                inline(rows[0], python=python) or (None if _NAME.match(rows[0]) else _quote(rows[0], "excerpt"))
            )
            continue
        found.append(_quote(body[:_LONGEST], "excerpt"))
        for row in rows[:_MOST]:
            if _shape(row) == "statement":
                single.append(_quote(row, "statement", weak=True))
    return [quote for quote in (*found, *single) if quote is not None]


def _quote(text: str, shape: Shape, tokens_of: Quote | None = None, *, weak: bool = False) -> Quote | None:
    """Return a quote with the tokens of its text, or of another quote; None if they are too few."""
    if tokens_of is not None:
        return Quote(text, shape, tokens_of.code, tokens_of.words, weak)
    found = tuple(token.text for token in code(tokens(text)))
    said = tuple(word for word, _ in words(text))
    if max(len(found), len(said) if shape == "excerpt" else 0) < LEAST_TOKENS:
        return None
    return Quote(text, shape, found, said, weak)


def _shape(text: str) -> Shape | None:
    """Return what a line of code is by itself; None if it is none."""
    if len(text) > _LONGEST:
        return None
    for source in (text, text + " pass") if text.endswith(":") else (text,):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if source != text:
            return "excerpt"
        if len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr):
            return None if isinstance(tree.body[0].value, ast.Constant) else "expression"
        return "statement" if tree.body else None
    return None
