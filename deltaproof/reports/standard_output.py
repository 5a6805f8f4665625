"""Standard output that takes every character, whatever its encoding."""

from __future__ import annotations

import codecs
import sys
from io import TextIOWrapper

_HANDLER = "deltaproof.escape"


def escape_what_it_cannot_show() -> None:
    r"""Let standard output write a character that its encoding lacks as ``\u6f22``, instead of failing.

    JSON is still the same JSON then, which Python's own "backslashreplace" would break.
    """
    codecs.register_error(_HANDLER, _escaped)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors=_HANDLER)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    # A half of a surrogate pair is no character by itself, and is shown all the same.
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end


def write_out(text: str) -> None:
    """Write ``text`` to standard output as it is; a stream that was closed meanwhile shows here, not at the exit."""
    sys.stdout.write(text)
    sys.stdout.flush()
