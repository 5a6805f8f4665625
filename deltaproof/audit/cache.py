"""Results kept between runs, keyed by everything they depend on.

A rule may look at every file of the tree, so a result holds for exactly these files with exactly this content. Results
are kept outside of the audited tree: one that came with the tree would be its own verdict on itself.
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
from deltaproof.audit.discover import default_root
from deltaproof.audit.rule import Rule

KEPT = 64
"""Results that are kept, of all trees together: the youngest ones."""
_PACKAGE = Path(deltaproof.__file__).parent
_OWN_SOURCE = ("audit", "hazards", "reports")


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
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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


def cache_for(root: Path) -> Cache | None:
    """Return the user's cache; None where there is no such folder, or it lies in the project that is audited."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "deltaproof" / "audit"
        inside = folder.resolve().is_relative_to(default_root([root]).resolve())
    except (OSError, RuntimeError):
        # A user without a home, or a link in a loop.
        return None
    return None if inside else Cache(folder)
