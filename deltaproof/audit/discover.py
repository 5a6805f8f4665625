"""Which files are audited: Python files below the targets, in order, each once."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from deltaproof.audit.given import NOT_REGULAR
from deltaproof.contracts.errors import ContractError

PASSED = frozenset(
    {".git", ".hg", ".svn", "__pycache__", "node_modules", ".tox", ".nox", ".eggs"}
    | {".mypy_cache", ".pytest_cache", ".ruff_cache"}
)
"""Folders below a target that hold nobody's source."""
SKIPPED = frozenset({".venv", "venv", "build", "dist", "site-packages"})
"""Folders below a target that most often hold copies; each is named as not analysed. A target may have such a name."""
SUFFIXES = frozenset({".py"})


@dataclass
class Found:
    """What discovery found.

    Attributes:
        files: absolute paths, sorted, each once.
        skipped: what was passed over and why: loops, links to outside the root, folders of copies, excluded paths.
    """

    files: list[Path] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def discover(targets: Sequence[Path], root: Path, exclude: Sequence[str] = ()) -> Found:
    """Return the Python files below ``targets``.

    Args:
        targets: files and folders. A file that is not Python is named under ``skipped``.
        root: absolute; a link to a place outside it and outside its target is not followed.
        exclude: patterns with ``*`` for paths relative to the root, or for one name in them; a file that is a target
            itself is left out too.

    Raises:
        ContractError: a target does not exist.
    """
    seen: dict[Path, None] = {}
    found = Found()
    for target in targets:
        if not os.path.lexists(target):
            raise ContractError("PATH", "a file or a folder that exists", str(target))
        place = Path(os.path.abspath(target))
        if excluded(place, root, exclude):
            found.skipped.append((place, "excluded by the settings"))
            continue
        if place.is_dir():
            paths: Iterator[Path] = _below(place, root, exclude, found)
        elif reason := _unread(place):
            found.skipped.append((place, reason))
            continue
        else:
            paths = iter((place,))
        for path in paths:
            seen.setdefault(path)
    found.files = sorted(seen)
    found.skipped = sorted(set(found.skipped))
    return found


def _unread(place: Path) -> str:
    """Return why a target that is no folder is not read; empty where it is."""
    if place.suffix not in SUFFIXES:
        return "not a Python file"
    try:
        regular = stat.S_ISREG(os.stat(place).st_mode)
    except OSError:
        # Whoever reads it says why it cannot be read.
        return ""
    return "" if regular else NOT_REGULAR


def excluded(path: Path, root: Path, patterns: Sequence[str]) -> bool:
    """Return whether a path, one of the folders around it, or the name of one of them matches a pattern."""
    if not patterns:
        return False
    try:
        parts = path.relative_to(root).parts
    except ValueError:
        parts = (path.name,)
    ways = [part for count, part in enumerate(parts, 1) for part in (part, "/".join(parts[:count]))]
    plain = [pattern.removeprefix("./").strip("/") for pattern in patterns]
    return any(fnmatchcase(way, pattern) for pattern in plain for way in ways)


def _below(folder: Path, root: Path, exclude: Sequence[str], found: Found) -> Iterator[Path]:
    target, whole = Path(os.path.realpath(folder)), Path(os.path.realpath(root))
    # A folder is walked once, whatever links lead to it.
    walked = {target}
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            found.skipped.append((place, f"folder cannot be read: {error.strerror or error}"))
            continue
        for entry in entries:
            path = place / entry.name
            reason = ""
            try:
                is_folder, is_file, is_link = entry.is_dir(), entry.is_file(), entry.is_symlink()
            except OSError as error:
                loop = error.errno == errno.ELOOP
                reason = "a link in a loop" if loop else f"cannot be looked at: {error.strerror or error}"
                found.skipped.append((path, reason))
                continue
            if (not is_folder and path.suffix not in SUFFIXES) or (is_folder and entry.name in PASSED):
                continue
            real = Path(os.path.realpath(path)) if is_link else path
            if is_folder and entry.name in SKIPPED:
                reason = f"folders named {entry.name} are skipped unless they are a target"
            elif excluded(path, root, exclude):
                reason = "excluded by the settings"
            elif is_link:
                reason = _unfollowed(real, target, whole)
            if not reason and not is_folder and not is_file:
                reason = NOT_REGULAR
            if not reason and is_folder:
                real = Path(os.path.realpath(path))
                reason = "a folder that is analysed elsewhere" if real in walked else ""
                walked.add(real)
            if reason:
                found.skipped.append((path, reason))
            elif is_folder:
                waiting.append(path)
            else:
                yield path


def _unfollowed(real: Path, target: Path, whole: Path) -> str:
    """Return why a link is not followed; empty where it is."""
    if not os.path.exists(real):
        return "a link that leads nowhere"
    if real == target or target in real.parents or real in target.parents:
        return "a link to what is analysed elsewhere, or in a loop"
    if real != whole and whole not in real.parents:
        return "a link to outside the root"
    return ""


def default_root(targets: Sequence[Path]) -> Path:
    """Return the folder that paths are relative to where none is named.

    It is the nearest folder around all targets that holds a pyproject.toml or a .git; else the nearest one that is
    no package itself.
    """
    places = [Path(os.path.abspath(target)) for target in targets] or [Path.cwd()]
    folders = [place if place.is_dir() else place.parent for place in places]
    common = Path(os.path.commonpath(folders))
    for folder in (common, *common.parents):
        if (folder / "pyproject.toml").is_file() or (folder / ".git").exists():
            return folder
    while (common / "__init__.py").is_file() and common.parent != common:
        common = common.parent
    return common
