"""A forgiving lexer: it reads whole files and torn-out pieces of them alike, and never fails."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["name", "number", "string", "op", "comment", "newline"]

_TOKEN = re.compile(
    r"""
    (?P<comment>\#[^\n]*)
  | (?P<string>(?:[rRbBuUfFtT]{0,2})(?:\"{3}(?:[^\\]|\\.)*?\"{3}|'{3}(?:[^\\]|\\.)*?'{3}
        |"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'))
  | (?P<number>(?:0[xXoObB][\da-fA-F_]+|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?)[jJ]?)
  | (?P<name>[^\W\d]\w*)
  | (?P<op>\*\*=|//=|>>=|<<=|\.\.\.|!=|:=|->|==|<=|>=|\+=|-=|\*=|/=|%=|&=|\|=|\^=|@=|\*\*|//|<<|>>|[^\s\w])
  | (?P<continued>\\[ \t]*\n)
  | (?P<newline>\n)
  | (?P<blank>[^\S\n]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_PREFIX = re.compile(r"^[A-Za-z]*")
_WORD = re.compile(r"\w+|[^\w\s]")
_OPEN, _CLOSE = "([{", ")]}"


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of source.

    Attributes:
        kind: what it is.
        text: normalised: strings with double quotes, whatever they had.
        line: where it starts, from 1.
        last: where it ends.
        start: offset of its first character.
        end: offset behind its last one.
        column: blanks before it count.
    """

    kind: Kind
    text: str
    line: int
    last: int
    start: int
    end: int
    column: int


def tokens(text: str) -> list[Token]:
    """Return the tokens of a text, with a "newline" only where a logical line ends.

    Where brackets do not match, every line is a logical line: else one torn bracket would swallow the file.
    """
    found, matched = _lex(text, joining=True)
    return found if matched else _lex(text, joining=False)[0]


def _lex(text: str, *, joining: bool) -> tuple[list[Token], bool]:
    """Return the tokens, lines in brackets joined or not, and whether the brackets match."""
    found: list[Token] = []
    line, depth, begin, matched = 1, 0, 0, True
    for match in _TOKEN.finditer(text):
        kind, word = match.lastgroup or "blank", match[0]
        breaks = word.count("\n")
        column = match.start() - begin
        if kind == "newline":
            if (depth <= 0 or not joining) and found and found[-1].kind != "newline":
                found.append(Token("newline", "\n", line, line, match.start(), match.end(), column))
        elif kind not in ("blank", "continued"):
            if kind == "op" and word in _OPEN:
                depth += 1
            elif kind == "op" and word in _CLOSE:
                depth -= 1
                matched = matched and depth >= 0
            shown = _string(word) if kind == "string" else word
            found.append(Token(kind, shown, line, line + breaks, match.start(), match.end(), column))  # type: ignore[arg-type]
        if breaks:
            line += breaks
            begin = match.start() + word.rindex("\n") + 1
    return found, matched and depth == 0


def code(found: list[Token]) -> list[Token]:
    """Return the tokens that say something: no comment, no line end, no comma before a closing bracket."""
    kept: list[Token] = []
    for token in found:
        if token.kind in ("comment", "newline"):
            continue
        trailing = token.kind == "op" and token.text in _CLOSE and len(kept) > 2 and kept[-1].text == ","
        # (x,) is a tuple and keeps its comma.
        if trailing and not (token.text == ")" and _single(kept)):
            kept.pop()
        kept.append(token)
    return kept


def words(text: str) -> list[tuple[str, int]]:
    """Return the words and signs of a text, whatever they mean, with their offsets; all quotes look alike."""
    return [('"' if match[0] == "'" else match[0], match.start()) for match in _WORD.finditer(text)]


def line_key(row: str) -> tuple[str, ...]:
    """Return what makes two lines alike: their tokens without comments, or their words where there are none."""
    return tuple(token.text for token in code(tokens(row))) or tuple(word for word, _ in words(row))


def _single(kept: list[Token]) -> bool:
    depth = 0
    for at in range(len(kept) - 2, -1, -1):
        word = kept[at].text if kept[at].kind == "op" else ""
        if word and word in _CLOSE:
            depth += 1
        elif word and word in _OPEN:
            if depth == 0:
                call = at > 0 and (kept[at - 1].kind == "name" or kept[at - 1].text in (")", "]"))
                return word == "(" and not call
            depth -= 1
        elif word == "," and depth == 0:
            return False
    return False


def _string(word: str) -> str:
    prefix = _PREFIX.match(word)
    lead = prefix[0] if prefix else ""
    body = word[len(lead) :]
    size = 3 if len(body) >= 6 and body[:3] in ('"""', "'''") else 1
    return lead.lower().replace("u", "") + '"' + body[size:-size] + '"'
