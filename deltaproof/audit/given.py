"""A file that an argument names, read only if it is a regular one: a pipe never ends, nor does a device."""

from __future__ import annotations

import stat
from pathlib import Path

from deltaproof.contracts.errors import ContractError

NOT_REGULAR = "not a regular file"


def read_given(argument: str, expected: str, path: Path, most: int) -> bytes:
    """Return the bytes of a file that an argument names.

    Args:
        argument: as the caller spells it.
        expected: what the file should be.
        path: the file.
        most: bytes that it may have.

    Raises:
        ContractError: it cannot be read, is larger, or is no regular file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ContractError(argument, expected, f"{path} ({NOT_REGULAR})")
        if status.st_size > most:
            raise ContractError(
                argument, f"{expected}, of at most {most >> 20} MiB", f"{path} ({status.st_size} bytes)"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, ContractError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ContractError(argument, expected, f"{path} ({reason})") from None
