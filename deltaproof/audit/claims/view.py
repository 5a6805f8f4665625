"""One source file as claims see it: which of its tokens run, which are docstring, comment or self-test."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from deltaproof.audit.claims.lexing import Token, code, line_key, tokens, words

Role = Literal["code", "docstring", "comment", "string", "self-test", "test"]

_TEST_PATH = re.compile(r"(^|/)(tests?|testing)/|(^|/)(test_[^/]*|[^/]*_test|conftest)\.py$")
_STATEMENT_END = frozenset({";"})
# What may follow a quoted expression without making another one of it.
_BINDS_TIGHTER = frozenset({".", "(", "[", "**"})


@dataclass(frozen=True)
class Match:
    """Where quoted text stands.

    Attributes:
        first: line of its first token.
        last: line of its last token.
        role: what the text is there; of a longer excerpt what most of it is.
    """

    first: int
    last: int
    role: Role


class View:
    """The tokens of a file, with what each of them is.

    Attributes:
        path: relative to the root, with "/".
        is_test: whether the whole file is a test.
        text: the whole text.
        lines: the same by line.
    """

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self.lines = text.removesuffix("\n").split("\n")
        self.is_test = _TEST_PATH.search(path) is not None
        self._roles: list[tuple[int, int, Role]] = []
        self._starts: set[int] = set()
        self._ends: set[int] = set()
        self._running: list[Token] = []
        self._lex(path.endswith((".py", ".pyi")))

    def _lex(self, python: bool) -> None:
        found = tokens(self.text)
        statement: list[Token] = []
        running: list[Token] = []
        first: set[int] = set()
        last: set[int] = set()
        for token in [*found, Token("newline", "\n", 0, 0, len(self.text), len(self.text), 0)]:
            if token.kind == "comment":
                self._roles.append((token.start, token.end, "comment"))
                continue
            if token.kind != "newline":
                statement.append(token)
                continue
            documents = python and all(part.kind == "string" for part in statement)
            role: Role = "docstring" if documents else "string"
            self._roles += [(part.start, part.end, role) for part in statement if part.kind == "string"]
            if statement and not documents:
                first.add(statement[0].start)
                last.add(statement[-1].end)
                running += statement
            statement = []
        self._roles.sort()
        self._running = code(running)
        for at, token in enumerate(self._running):
            before = self._running[at - 1].text if at else ""
            if token.start in first or before in _STATEMENT_END or (before == ":" and self._heads(at - 1)):
                self._starts.add(at)
            if token.end in last or (at + 1 < len(self._running) and self._running[at + 1].text in _STATEMENT_END):
                self._ends.add(at)

    def _heads(self, at: int) -> bool:
        """Whether the colon at a place opens a body on its own line: ``if x: y = 1``."""
        line = self._running[at].line
        while at and self._running[at - 1].line == line and at not in self._starts:
            at -= 1
        heads = ("if", "elif", "else", "for", "while", "with", "try", "except", "finally", "def", "class", "case")
        return self._running[at].text in heads

    @cached_property
    def _order(self) -> list[int]:
        return sorted(self._starts)

    @cached_property
    def _self_test(self) -> list[tuple[int, int]]:
        """Return the line ranges below ``if __name__ == "__main__":``."""
        ranges: list[tuple[int, int]] = []
        stream = self._running
        for at in self._order:
            head = [token.text for token in stream[at : at + 6]]
            if head[:1] != ["if"] or (head[1:2] == ["("] and "__name__" not in head):
                continue
            if {"__name__", "==", '"__main__"'} <= set(head):
                column, line = stream[at].column, stream[at].line
                end = len(self.lines)
                for later in self._order[bisect_right(self._order, at) :]:
                    if stream[later].line > line and stream[later].column <= column:
                        end = stream[later].line - 1
                        break
                ranges.append((line, end))
        return ranges

    @cached_property
    def _index(self) -> dict[tuple[str, str], list[int]]:
        """Return the places of each pair of neighbours in the code."""
        index: dict[tuple[str, str], list[int]] = defaultdict(list)
        for at, (left, right) in enumerate(pairwise(self._running)):
            index[left.text, right.text].append(at)
        return index

    @cached_property
    def _words(self) -> tuple[list[str], list[int], dict[tuple[str, str], list[int]]]:
        found = words(self.text)
        texts, offsets = [word for word, _ in found], [offset for _, offset in found]
        index: dict[tuple[str, str], list[int]] = defaultdict(list)
        for at, pair in enumerate(pairwise(texts)):
            index[pair].append(at)
        return texts, offsets, index

    @cached_property
    def _line_starts(self) -> list[int]:
        starts = [0]
        for line in self.lines[:-1]:
            starts.append(starts[-1] + len(line) + 1)
        return starts

    def line_of(self, offset: int) -> int:
        """Return the line of an offset, from 1."""
        return bisect_right(self._line_starts, offset)

    def find_code(self, quoted: list[str], *, statement: bool, name: bool = False) -> list[Match]:
        """Return where these tokens stand in code that is no comment and no docstring.

        Args:
            quoted: texts of tokens, at least two.
            statement: whether they are whole statements, and not an expression that stands inside one.
            name: whether they are a dotted name, which may be called, indexed or looked into.
        """
        stream, size = self._running, len(quoted)
        found = []
        for at in self._index.get((quoted[0], quoted[1]), ()):
            if [token.text for token in stream[at : at + size]] != quoted:
                continue
            if statement:
                if at not in self._starts or at + size - 1 not in self._ends:
                    continue
            elif not name and not self._whole(at, size):
                continue
            found.append(self._match(stream[at].line, stream[at + size - 1].last, "code"))
        return found

    def _whole(self, at: int, size: int) -> bool:
        """Whether an expression ends and begins where the quote does: ``a / b`` is not in ``a / b.c``."""
        stream = self._running
        last = at + size - 1
        if last + 1 < len(stream) and last not in self._ends and stream[last + 1].text in _BINDS_TIGHTER:
            return False
        owner = at > 1 and stream[at - 1].text == "." and at not in self._starts
        return not owner or stream[at - 2].text in ("self", "cls")

    def find_text(self, quoted: list[str], *, dead: bool) -> list[Match]:
        """Return where these words stand in the text.

        Args:
            quoted: words and signs, at least two.
            dead: whether to look only at what does not run: docstrings, comments and strings; else the words must be
                whole lines, comments behind them left out.
        """
        texts, offsets, index = self._words
        size = len(quoted)
        found = []
        for at in index.get((quoted[0], quoted[1]), ()):
            if texts[at : at + size] != quoted:
                continue
            roles = [self._role(offset) for offset in offsets[at : at + size]]
            if (dead and "code" in roles) or not (dead or self._lines_whole(at, size)):
                continue
            # An excerpt of both is code if a whole statement of it is.
            role: Role = max(sorted(set(roles)), key=roles.count)
            found.append(self._match(self.line_of(offsets[at]), self.line_of(offsets[at + size - 1]), role))
        return found

    def _lines_whole(self, at: int, size: int) -> bool:
        texts, offsets, _ = self._words
        begins = at == 0 or "\n" in self.text[offsets[at - 1] : offsets[at]]
        end = at + size
        return begins and (end == len(texts) or texts[end] == "#" or "\n" in self.text[offsets[end - 1] : offsets[end]])

    def _role(self, offset: int) -> Role:
        at = bisect_right(self._roles, (offset, len(self.text) + 1, "string")) - 1
        return self._roles[at][2] if at >= 0 and offset < self._roles[at][1] else "code"

    def _match(self, first: int, last: int, role: Role) -> Match:
        if self.is_test:
            return Match(first, last, "test")
        if role == "code" and any(begin <= first and last <= end for begin, end in self._self_test):
            return Match(first, last, "self-test")
        return Match(first, last, role)

    @cached_property
    def _code_lines(self) -> set[int]:
        return {line for token in self._running for line in range(token.line, token.last + 1)}

    def role_of_lines(self, first: int, last: int) -> Role | None:
        """Return what a range of lines is if none of it runs; "code" if some of it does; None outside of the file."""
        inside = range(max(1, first), min(last, len(self.lines)) + 1)
        if not inside:
            return None
        if self.is_test:
            return "test"
        roles = set()
        for line in inside:
            if line in self._code_lines:
                below = any(begin <= line <= end for begin, end in self._self_test)
                if not below:
                    return "code"
                roles.add("self-test")
                continue
            text = self.lines[line - 1]
            roles.add(self._role(self._line_starts[line - 1] + len(text) - len(text.lstrip())))
        order: tuple[Role, ...] = ("self-test", "docstring", "comment", "string")
        return next((role for role in order if role in roles), None)

    def lines_alike(self, key: tuple[str, ...]) -> list[int]:
        """Return the lines, from 1, whose tokens are these."""
        return self._by_key.get(key, [])

    @cached_property
    def _by_key(self) -> dict[tuple[str, ...], list[int]]:
        found: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, row in enumerate(self.lines, 1):
            found[line_key(row)].append(number)
        return found
