"""Taking the Python files out of a wheel or an sdist that may be damaged, or made to do harm."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import IO, cast

MOST_FILES = 50_000
MOST_BYTES = 4 << 30
MOST_SOURCE_BYTES = 512 << 20
"""Bytes of all Python files together; only these are unpacked."""
MOST_RATIO = 200
"""How many times larger than the archive its content may be, beyond the first ``FREE_BYTES``."""
FREE_BYTES = 32 << 20
MOST_HEADER_BYTES = 256 << 10
"""What a tar may say of one member before its content: tarfile keeps all of that in memory."""
_WANTED = (".py", "pyproject.toml")
_COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\xfd7zXZ\0", "lzma"))


class PackageError(Exception):
    """A package that cannot be fetched, or that is not unpacked; its text says why."""


def unpack(path: Path, root: Path) -> None:
    """Write the Python files of a wheel (zip) or an sdist (tar) below ``root``.

    Raises:
        PackageError: it is no such archive or a damaged one; a member's path leaves ``root``, is a link or a device, or
            comes twice; or it holds too many files or too many bytes. Nothing is left behind then.
    """
    root.mkdir(parents=True)
    try:
        budget = _Budget(path.stat().st_size)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as wheel:
                _unpack_zip(wheel, root, budget)
        else:
            with _open_tar(path) as file:
                _unpack_tar(_Metered(file, budget.declared), root, budget)
    except PackageError as error:
        shutil.rmtree(root, ignore_errors=True)
        raise PackageError(f"{path.name}: {error}") from None
    except Exception as error:
        # What zipfile, tarfile and the decoders below them raise on damaged bytes is not written down anywhere:
        # zlib.error, LZMAError, EOFError, struct.error, RuntimeError, MemoryError and others have been seen.
        shutil.rmtree(root, ignore_errors=True)
        raise PackageError(f"{path.name}: cannot be unpacked: {str(error) or type(error).__name__}") from None


class _Budget:
    """What an archive may still hold. Sizes are counted as they are read: a header may lie."""

    def __init__(self, archive_bytes: int) -> None:
        self.files = MOST_FILES
        self.declared = min(MOST_BYTES, FREE_BYTES + MOST_RATIO * archive_bytes)
        self.source = min(MOST_SOURCE_BYTES, self.declared)

    def member(self, name: str, size: int) -> None:
        self.files -= 1
        self.declared -= size
        if self.files < 0:
            raise PackageError(f"more than {MOST_FILES} members")
        if size < 0:
            raise PackageError(f"damaged: member {name!r} has less than no content")
        if self.declared < 0:
            raise PackageError(f"its content is too large for its size (at {name!r}): a decompression bomb?")

    def copy(self, source: IO[bytes], place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as target:
            while block := source.read(1 << 16):
                self.source -= len(block)
                if self.source < 0:
                    raise PackageError("its Python files are too large: a decompression bomb?")
                target.write(block)


def _place(name: str, root: Path) -> Path:
    """Return where a member goes.

    Raises:
        PackageError: its path is absolute or leaves the folder.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
        raise PackageError(f"member {name!r} has a path that leaves the archive")
    return root.joinpath(*parts)


def _new(name: str, place: Path) -> None:
    """Refuse a second member of one name: which of them is installed depends on who unpacks it."""
    if os.path.lexists(place):
        raise PackageError(f"member {name!r} is in it twice")


def _unpack_zip(wheel: zipfile.ZipFile, root: Path, budget: _Budget) -> None:
    for info in wheel.infolist():
        budget.member(info.filename, info.file_size)
        place = _place(info.filename, root)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise PackageError(f"member {info.filename!r} is a link or a device")
        if info.is_dir() or not info.filename.endswith(_WANTED):
            continue
        _new(info.filename, place)
        with wheel.open(info) as source:
            budget.copy(source, place)


def _open_tar(path: Path) -> IO[bytes]:
    """Return the tar inside a file, decompressed while it is read.

    Raises:
        PackageError: the file looks like none.
    """
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    for magic, name in _COMPRESSED:
        if head.startswith(magic):
            # Some builds of Python lack one of these.
            found: IO[bytes] = import_module(name).open(path, "rb")
            return found
    if head[257:262] != b"ustar":
        raise PackageError("neither a wheel nor an sdist")
    return path.open("rb")


class _Metered:
    """A tar that is read forward, counted, and up to a mark at most."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self.file = file
        self.most = most
        self.position = 0
        self.mark = MOST_HEADER_BYTES

    def tell(self) -> int:
        return self.position

    def seek(self, position: int, /) -> int:
        if position < self.position:
            raise PackageError("damaged: a member before the one before it")
        while self.position < position and self.read(min(position - self.position, 1 << 16)):
            pass
        return self.position

    def read(self, size: int, /) -> bytes:
        """Return the next bytes.

        Raises:
            PackageError: these are more than the tar may have, here or in all.
        """
        if self.position + size > self.mark:
            raise PackageError(f"more than {MOST_HEADER_BYTES >> 10} KiB of headers before a member: a memory bomb?")
        block = self.file.read(size)
        self.position += len(block)
        if self.position > self.most:
            raise PackageError("its content is too large for its size: a decompression bomb?")
        return block

    def content(self, end: int) -> None:
        """Allow to read a member's content up to its end, and the headers of the next one."""
        self.mark = end + tarfile.BLOCKSIZE + MOST_HEADER_BYTES

    def only_zeros_left(self) -> bool:
        """Read to the end, where a checksum may stand, and return whether nothing but padding was left."""
        clean = True
        self.mark = self.most + (1 << 17)
        while block := self.read(1 << 16):
            clean = clean and not any(block)
        return clean


class _Member(tarfile.TarInfo):
    """A member whose header is sound. Left alone, tarfile takes a damaged one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        if buf and not any(buf):
            # Zeros are the end; the base class says so to its caller.
            return super().frombuf(buf, encoding, errors)
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise PackageError(f"damaged or cut off: {error}") from None


def _unpack_tar(file: _Metered, root: Path, budget: _Budget) -> None:
    # A tar has no list of its members: reading on decompresses what was skipped, so its declared size counts.
    with tarfile.TarFile(fileobj=cast("IO[bytes]", file), tarinfo=_Member) as tar:
        while (info := tar.next()) is not None:
            # Each member keeps a copy of the headers that hold for all: together they could fill the memory.
            tar.members = []  # type: ignore[attr-defined]
            budget.member(info.name, info.size)
            place = _place(info.name, root)
            file.content(info.offset_data + info.size)
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise PackageError(f"member {info.name!r} is a link or a device")
            source = tar.extractfile(info)
            if info.name.endswith(_WANTED) and source is not None:
                _new(info.name, place)
                with source:
                    budget.copy(source, place)
    if not file.only_zeros_left():
        raise PackageError("damaged: there is more behind the end of the archive")
