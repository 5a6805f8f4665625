"""A published package, fetched and unpacked to be read: nothing of it is built, installed or run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from deltaproof.audit import sdist
from deltaproof.audit.unpack import PackageError, unpack
from deltaproof.contracts.errors import ContractError

DOWNLOAD_SECONDS = 540
_SPEC = re.compile(r"(?P<name>[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)")


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
