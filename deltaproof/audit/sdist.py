"""An sdist, fetched without pip's help: pip would run its build only to learn its metadata.

pip's list of what its indexes hold is read for the address; the archive is fetched as a plain file.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

SUFFIXES = (".tar.gz", ".zip", ".tar.bz2", ".tar.xz")
MOST_BYTES = 1 << 30
SECONDS = 120
_LINK = re.compile(r"Found link (\S+)")


class NoSdist(Exception):
    """An sdist that there is not, or that cannot be fetched; its text says why."""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def find_link(log: Iterable[str], name: str, version: str) -> str:
    """Return the address of the sdist of ``name==version`` in what pip logs of its indexes; "" if there is none."""
    for line in log:
        found = _LINK.search(line)
        if found is None:
            continue
        file = PurePosixPath(unquote(urlsplit(found[1]).path)).name
        for suffix in SUFFIXES:
            stem, dash, last = file.removesuffix(suffix).rpartition("-")
            if file.endswith(suffix) and dash and _normal(stem) == _normal(name) and last.lower() == version.lower():
                return found[1]
    return ""


def download(name: str, version: str, folder: Path) -> Path:
    """Return the sdist of ``name==version``, fetched into ``folder``.

    Raises:
        NoSdist: no index of pip's has one, it cannot be fetched, or it is not the file that the index promises.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", name, "-vv", "--no-input", "--no-color"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise NoSdist(f"pip did not list its indexes within {SECONDS} s") from None
    link = find_link(done.stdout.splitlines() + done.stderr.splitlines(), name, version)
    if not link:
        raise NoSdist("no index has an sdist of it")
    return fetch(link, folder)


def fetch(link: str, folder: Path) -> Path:
    """Return the file behind an address with ``#sha256=``, fetched into ``folder``.

    Raises:
        NoSdist: it cannot be fetched, is too large, or has another checksum.
    """
    parts = urlsplit(link)
    promised = re.search(r"sha256=([0-9a-f]{64})", parts.fragment)
    if parts.scheme not in ("https", "http", "file") or promised is None:
        raise NoSdist("its index gives no address with a SHA-256")
    place = folder / PurePosixPath(unquote(parts.path)).name
    digest = hashlib.sha256()
    size = 0
    try:
        with urlopen(parts._replace(fragment="").geturl(), timeout=SECONDS) as source, place.open("xb") as target:
            while block := source.read(1 << 16):
                size += len(block)
                if size > MOST_BYTES:
                    raise NoSdist(f"it is larger than {MOST_BYTES >> 20} MiB")
                digest.update(block)
                target.write(block)
    except (OSError, ValueError) as error:
        raise NoSdist(f"it cannot be fetched: {error}") from None
    if digest.hexdigest() != promised[1]:
        raise NoSdist("its content is not what the index promises (SHA-256)")
    return place
