"""Write a result that is never seen half written: whoever is killed meanwhile leaves the text before it."""

from __future__ import annotations

import os
from pathlib import Path


def replaceable(path: Path) -> bool:
    """Return whether ``path`` is a file or nothing yet: what is neither (a pipe, a terminal) can be written to once."""
    target = path.resolve()
    return target.is_file() or not target.exists()


def replace_file(path: Path, content: str | bytes) -> None:
    """Write text, in UTF-8, or bytes beside ``path``, then put them in its place in one step.

    What is not ``replaceable`` is written to as it is; a link stays, and its target is replaced.

    Raises:
        OSError: the folder does not exist or cannot be written to.
    """
    target, data = path.resolve(), content.encode() if isinstance(content, str) else content
    if not replaceable(target):
        target.write_bytes(data)
        return
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
