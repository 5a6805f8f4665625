"""A published package, fetched and unpacked to be read: nothing of it is built, installed or run."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO

from deltaproof.audit import sdist
from deltaproof.contracts.errors import ContractError

MOST_FILES = 50_000
MOST_BYTES = 4 << 30
MOST_SOURCE_BYTES = 512 << 20
"""Bytes of all Python files together; only these are unpacked."""
MOST_RATIO = 200
"""How many times larger than the archive its content may be, beyond the first ``FREE_BYTES``."""
FREE_BYTES = 32 << 20
DOWNLOAD_SECONDS = 540
_SPEC = re.compile(r"(?P<name>[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_WANTED = (".py", "pyproject.toml")


class PackageError(Exception):
    """A package that cannot be fetched, or that is not unpacked; its text says why."""


@dataclass(frozen=True)
class Unpacked:
    """A package's files.

    Attributes:
        name: as it was asked for.
        version: as it was asked for.
        archive: file name of the wheel or sdist.
        root: the folder that it is unpacked in.
    """

    name: str
    version: str
    archive: str
    root: Path


def parse(spec: str) -> tuple[str, str]:
    """Return name and version of ``NAME==VERSION``.

    Raises:
        ContractError: it has another form.
    """
    found = _SPEC.fullmatch(spec.strip())
    if found is None:
        raise ContractError("--package", "NAME==VERSION", repr(spec))
    return found["name"], found["version"]


@contextmanager
def package(spec: str) -> Iterator[Unpacked]:
    """Fetch ``NAME==VERSION``, its wheel or else its sdist, and unpack its Python files into a folder removed later.

    Raises:
        ContractError: ``spec`` has another form.
        PackageError: there is neither, or the archive is not safe to unpack.
    """
    name, version = parse(spec)
    with TemporaryDirectory(prefix="deltaproof-") as folder:
        archive = download(name, version, Path(folder) / "download")
        root = Path(folder) / "source"
        unpack(archive, root)
        yield Unpacked(name, version, archive.name, root)


def download(name: str, version: str, folder: Path) -> Path:
    """Return the wheel, fetched by pip as the user has set it up; where there is none the sdist.

    A wheel is a plain archive: pip runs none of it. The sdist is fetched without pip, which would build it.

    Raises:
        PackageError: there is neither, or it cannot be fetched.
    """
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), f"{name}=={version}"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise PackageError(f"pip did not fetch {name}=={version} within {DOWNLOAD_SECONDS} s") from None
    wheels = sorted(folder.glob("*.whl"))
    if not done.returncode and wheels:
        return wheels[0]
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
    reason = lines[-1] if lines else f"pip exited with {done.returncode}"
    try:
        return sdist.download(name, version, folder)
    except sdist.NoSdist as error:
        raise PackageError(
            f"no wheel of {name}=={version} for this Python and platform ({reason}), and of an sdist: {error}"
        ) from None


@contextmanager
def archive(path: Path) -> Iterator[Unpacked]:
    """Unpack a wheel or an sdist that lies on disk, as ``package`` does.

    Raises:
        PackageError: it is no archive, or not safe to unpack.
    """
    with TemporaryDirectory(prefix="deltaproof-") as folder:
        root = Path(folder) / "source"
        unpack(path, root)
        name, _, version = path.name.removesuffix(".tar.gz").partition("-")
        yield Unpacked(name, version.partition("-")[0], path.name, root)


def unpack(path: Path, root: Path) -> None:
    """Write the Python files of a wheel (zip) or an sdist (tar) below ``root``.

    Raises:
        PackageError: it is no such archive, or a member's path leaves ``root``, is a link or a device, or it holds too
            many files or too many bytes. Nothing is left behind then.
    """
    root.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as wheel:
                _unpack_zip(wheel, root, _Budget(path.stat().st_size))
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                _unpack_tar(tar, root, _Budget(path.stat().st_size))
        else:
            raise PackageError(f"{path.name}: neither a wheel nor an sdist")
    except (PackageError, OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError, NotImplementedError,
            RuntimeError) as error:  # fmt: skip
        shutil.rmtree(root, ignore_errors=True)
        if isinstance(error, PackageError):
            raise
        raise PackageError(f"{path.name}: cannot be unpacked: {error}") from None


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


def _unpack_zip(wheel: zipfile.ZipFile, root: Path, budget: _Budget) -> None:
    for info in wheel.infolist():
        budget.member(info.filename, info.file_size)
        place = _place(info.filename, root)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise PackageError(f"member {info.filename!r} is a link or a device")
        if info.is_dir() or not info.filename.endswith(_WANTED) or os.path.lexists(place):
            continue
        with wheel.open(info) as source:
            budget.copy(source, place)


def _unpack_tar(tar: tarfile.TarFile, root: Path, budget: _Budget) -> None:
    # A tar has no list of its members: reading on decompresses what was skipped, so its declared size counts.
    for info in tar:
        budget.member(info.name, info.size)
        place = _place(info.name, root)
        if info.isdir():
            continue
        if not info.isreg():
            raise PackageError(f"member {info.name!r} is a link or a device")
        source = tar.extractfile(info)
        if info.name.endswith(_WANTED) and source is not None and not os.path.lexists(place):
            with source:
                budget.copy(source, place)
