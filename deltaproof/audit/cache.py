"""Results kept between runs, keyed by everything they depend on.

A rule may look at every file of the tree, so a result holds for exactly these files with exactly this content.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import deltaproof
from deltaproof.audit.rule import Rule

FOLDER = ".deltaproof_cache"
KEPT = 32
"""Results that a cache folder keeps: the youngest ones."""
_PACKAGE = Path(deltaproof.__file__).parent
_OWN_SOURCE = ("audit", "hazards", "reports")


def folder_for(root: Path) -> Path:
    """Return where results of audits below ``root`` are kept: in the project, or with the user's caches."""
    if (root / "pyproject.toml").is_file() or (root / ".git").exists():
        return root / FOLDER
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "deltaproof" / "audit"


def _own_files(rules: Sequence[Rule]) -> list[Path]:
    files = {path for folder in _OWN_SOURCE for path in (_PACKAGE / folder).rglob("*.py")}
    for rule in rules:
        source = inspect.getsourcefile(type(rule))
        if source is not None:
            files.add(Path(source))
    return sorted(files)


def key_of(
    model: Iterable[Path], targets: Sequence[Path], root: Path, rules: Sequence[Rule], skipped: Iterable[object]
) -> str:
    """Return the key of a run.

    Args:
        model: every file that rules may look at, in order.
        targets: the files that are reported on.
        root: what paths are relative to.
        rules: the rules that run.
        skipped: what was passed over, and why.
    """
    state = hashlib.blake2b(digest_size=20)

    def add(*parts: object) -> None:
        # ascii() keeps parts apart and takes file names that are no text.
        state.update(ascii(parts).encode() + b"\n")

    add(deltaproof.__version__, platform.python_version(), [(rule.code, rule.name) for rule in rules])
    for path in _own_files(rules):
        add(path.name, _digest(path))
    for path in model:
        add(os.path.relpath(path, root), _digest(path))
    add([os.path.relpath(path, root) for path in targets])
    add([str(item) for item in skipped])
    return state.hexdigest()


def _digest(path: Path) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.blake2b(file.readall(), digest_size=20).hexdigest()
    except OSError as error:
        return f"unreadable {error.errno}"


class Cache:
    """A folder of results. What cannot be read, written or understood counts as not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _place(self, key: str) -> Path:
        return self.folder / f"audit-{key}.json"

    def load(self, key: str) -> object:
        """Return the data kept under a key, or None."""
        place = self._place(key)
        try:
            data: object = json.loads(place.read_text(encoding="utf-8"))
            os.utime(place)
        except (OSError, ValueError, RecursionError):
            return None
        return data

    def store(self, key: str, text: str) -> None:
        """Keep JSON text under a key, and drop the oldest results."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            ignore = self.folder / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n", encoding="utf-8")
            # Written aside first: another run never reads half a result.
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(name, self._place(key))
            kept = sorted(self.folder.glob("audit-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in kept[KEPT:]:
                old.unlink(missing_ok=True)
        except OSError:
            return
