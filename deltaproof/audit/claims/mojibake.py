"""Reading a report's bytes: its encoding, and text that somebody decoded wrongly before it was saved."""

from __future__ import annotations

from functools import cache
from typing import Literal

Misread = Literal["cp1252", "mac_roman"]
_CODECS: tuple[Misread, ...] = ("cp1252", "mac_roman")
_LEAST_SHARE = 0.6
"""Of the characters beyond ASCII, how many must be pieces of UTF-8 before the text counts as decoded wrongly."""
_ROUNDS = 3
"""A text can have been decoded wrongly more than once."""

_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u2018\u2019\u201a\u02bc", "'"),
        **dict.fromkeys("\u201c\u201d\u201e", '"'),
        **dict.fromkeys("\u00a0\u2007\u2009\u202f", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufe0f\ufeff", None),
        "\u2026": "...",
        "\u2028": "\n",
        "\u2029": "\n",
        "\u0085": "\n",
    }
)


def decode(data: bytes) -> str:
    """Return the text of some bytes: UTF-8 or UTF-16 with a mark, else UTF-8, else cp1252."""
    for mark, codec in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return data.decode(codec, errors="replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def repair(text: str) -> tuple[str, Misread | None]:
    """Undo a wrong decoding, UTF-8 read as cp1252 or as Mac Roman.

    Returns:
        The text, and the codec it had been read with; None where nothing was wrong.
    """
    used: Misread | None = None
    for _ in range(_ROUNDS):
        total = sum(char > "\x7f" for char in text)
        best, codec, hits = text, None, 0
        for candidate in _CODECS:
            mended, count = _undo(text, candidate)
            if count > hits:
                best, codec, hits = mended, candidate, count
        if codec is None or hits < _LEAST_SHARE * total:
            break
        text, used = best, used or codec
    return text, used


def plain(text: str) -> str:
    """Return a text with plain hyphens, quotes, blanks and line ends, as far as typography goes."""
    return text.replace("\r\n", "\n").replace("\r", "\n").translate(_PLAIN)


@cache
def _bytes_of(codec: Misread) -> dict[str, int]:
    table: dict[str, int] = {}
    for value in range(0x80, 0x100):
        try:
            table[bytes([value]).decode(codec)] = value
        except UnicodeDecodeError:
            # cp1252 leaves five bytes out; readers put the control character of that number there.
            table[chr(value)] = value
    return table


def _undo(text: str, codec: Misread) -> tuple[str, int]:
    """Return the text with every whole UTF-8 sequence decoded, and how many characters were part of one."""
    table = _bytes_of(codec)
    out: list[str] = []
    used, at, end = 0, 0, len(text)
    while at < end:
        lead = table.get(text[at], 0)
        size = 2 if 0xC2 <= lead <= 0xDF else 3 if 0xE0 <= lead <= 0xEF else 4 if 0xF0 <= lead <= 0xF4 else 1
        if size > 1:
            data = bytes(table.get(char, 0) for char in text[at : at + size])
            try:
                out.append(data.decode("utf-8"))
            except UnicodeDecodeError:
                size = 1
            else:
                if len(data) == size and 0 not in data:
                    used += size
                    at += size
                    continue
                out.pop()
        out.append(text[at])
        at += 1
    return "".join(out), used
