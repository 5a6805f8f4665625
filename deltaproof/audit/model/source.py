"""Reading one file: its text in the encoding it declares, and its tree."""

from __future__ import annotations

import ast
import io
import re
import stat
import tokenize
import warnings
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deltaproof.audit.given import NOT_REGULAR

MOST_BYTES = 8 << 20
"""Larger files are generated data, not source."""

LONG = 1 << 16
"""From so many characters on, names before a parenthesis are listed once instead of looked for each time."""
_CALLED = re.compile(r"(?<![\w.])[\w.]+(?=\()")


class Unreadable(Exception):
    """A file that cannot be analysed; its text says why.

    Attributes:
        passing: whether another run may read it.
    """

    def __init__(self, why: str, *, passing: bool = False) -> None:
        super().__init__(why)
        self.passing = passing


@dataclass(frozen=True)
class Source:
    """A file's text.

    Attributes:
        path: where it lies.
        text: decoded, with "\\n" between lines.
        lines: without line ends.
    """

    path: Path
    text: str
    lines: list[str]

    def calls(self, name: str) -> bool:
        """Return whether the text holds a name, dotted or not, or one that ends so, before an opening parenthesis."""
        if len(self.text) < LONG:
            return f"{name}(" in self.text
        ending = name[::-1]
        at = bisect_left(self._called, ending)
        return at < len(self._called) and self._called[at].startswith(ending)

    @cached_property
    def _called(self) -> list[str]:
        # Backwards, so that those with one ending stand side by side.
        return sorted({name[::-1] for name in _CALLED.findall(self.text)})


def read(path: Path) -> Source:
    """Return a file's text.

    Raises:
        Unreadable: it cannot be opened or decoded, or it is too large.
    """
    try:
        status = path.stat()
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            # A pipe would never end, nor would a device.
            raise Unreadable(NOT_REGULAR)
        if size > MOST_BYTES:
            raise Unreadable(f"larger than {MOST_BYTES >> 20} MiB ({size} bytes)")
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}", passing=True) from None
    if b"\0" in data:
        raise Unreadable("holds NUL bytes: not a text file")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise Unreadable(f"cannot be decoded: {error}") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return Source(path, text, text.split("\n"))


def parse(source: Source) -> ast.Module:
    """Return a file's tree.

    Raises:
        Unreadable: it is not Python, or nested too deeply for the parser.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source.text)
    except SyntaxError as error:
        raise Unreadable(f"syntax error in line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise Unreadable("nested too deeply to be parsed") from None
    except MemoryError:
        # the parser says this of deep nesting too
        raise Unreadable("nested too deeply to be parsed, or too little memory", passing=True) from None
    except ValueError as error:
        raise Unreadable(f"cannot be parsed: {error}") from None
