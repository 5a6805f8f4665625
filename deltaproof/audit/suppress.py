"""Comments that silence a finding: ``# deltaproof: ignore[name] reason``, on its lines or on the line before.

The reason is required. A comment that silences nothing is reported, and so is one that is not understood.
"""

from __future__ import annotations

import io
import re
import tokenize
from dataclasses import dataclass

_MARK = re.compile(r"deltaproof:\s*ignore", re.IGNORECASE)
_COMMENT = re.compile(r"#\s*deltaproof:\s*ignore\b(?P<rest>.*)", re.IGNORECASE)
_REST = re.compile(r"\s*\[(?P<names>[^\]]*)\](?P<reason>.*)")
_EDGES = " \t:;,.-–—"
FORM = "# deltaproof: ignore[name] reason"


@dataclass(frozen=True)
class Suppression:
    """One ignore comment.

    Attributes:
        line: where the comment stands.
        column: where it begins, from 0.
        target: the line of code that it speaks of.
        keys: codes or names of rules, in lower case.
        reason: why; empty where none is given.
        text: its own line.
        problem: what is wrong with its form; empty where nothing is.
        end: where it ends, if nothing else stands in the comment; else 0.
    """

    line: int
    column: int
    target: int
    keys: tuple[str, ...]
    reason: str
    text: str
    problem: str = ""
    end: int = 0

    def covers(self, first: int, last: int, rule: tuple[str, str]) -> bool:
        """Return whether it silences a finding of a rule (code, name) on these lines."""
        return (
            not self.problem
            and first <= self.target <= last
            and any(key in self.keys for key in (rule[0].lower(), rule[1].lower()))
        )


def suppressions(text: str) -> list[Suppression]:
    """Return the ignore comments of a file; what stands in strings is no comment."""
    if _MARK.search(text) is None:
        return []
    comments: list[tuple[int, int, str, str, bool]] = []
    code_lines: list[int] = []
    begun = 0
    blank = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                comments.append((*token.start, token.string, token.line.strip(), token.start[0] != begun))
            elif token.type not in blank:
                if token.start[0] != begun:
                    code_lines.append(token.start[0])
                begun = token.end[0]
    except (tokenize.TokenError, SyntaxError):
        # The parser has read the file: what the tokenizer stumbles over lies behind the comments it gave.
        pass
    return [
        _read(
            line, column, next((n for n in code_lines if n > line), line) if alone else line, found["rest"], own,
            column + len(comment) if found.start() == 0 and "#" not in found["rest"] else 0,
        )
        for line, column, comment, own, alone in comments
        for found in _COMMENT.finditer(comment)
    ]  # fmt: skip


def _read(line: int, column: int, target: int, rest: str, text: str, end: int) -> Suppression:
    found = _REST.match(rest)
    names = found["names"] if found is not None else ""
    keys = tuple(key.strip().lower() for key in names.split(",") if key.strip())
    # Another tool's comment may follow.
    reason = found["reason"].split(" # ")[0].lstrip(_EDGES).rstrip() if found is not None else ""
    problem = ""
    if not keys:
        problem = "it names no rule"
    elif re.search(r"\w", reason) is None:
        problem = "it gives no reason"
    return Suppression(line, column, target, keys, reason, text, problem, end)
