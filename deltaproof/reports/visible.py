"""Text from audited files made harmless: what moves a cursor, hides or reorders text is shown, not obeyed."""

from __future__ import annotations

import re

# C0 but tab, DEL, C1; marks that reorder, join or hide; line and paragraph separators; halves of surrogate pairs.
_HIDDEN = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(text: str) -> str:
    """Return ``text`` in one line, with control characters and invisible marks as Python would escape them."""
    return _HIDDEN.sub(_escaped, text)
