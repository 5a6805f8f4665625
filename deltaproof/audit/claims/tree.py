"""A source tree as claims name it: paths with a prefix too many or too few, and none outside of the root."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from deltaproof.audit.claims.mojibake import plain
from deltaproof.audit.claims.view import View
from deltaproof.audit.model.source import Unreadable, read

_SKIPPED = frozenset({".git", ".hg", ".svn", "__pycache__", "node_modules", ".venv", ".tox"})
_MOST_FILES = 200_000
_MOST_ALIKE = 16
_LONGEST_PATH = 1_000


class Tree:
    """The files below a root.

    Attributes:
        root: the root, resolved.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._views: dict[str, View | str] = {}

    def find(self, claimed: str) -> tuple[list[str], str]:
        """Return the files that a claimed path can mean, relative to the root, and why there is none.

        The path as it is comes first, then without its first folders, then files whose path ends with it.
        """
        path = claimed.strip().strip("`'\"").replace("\\", "/").lstrip("@")
        if not path:
            return [], "the claim names no file"
        if len(path) > _LONGEST_PATH or any(ord(char) < 32 for char in path):
            return [], "the claimed path is no path"
        if path.startswith(("/", "~")) or path[1:2] == ":" or ".." in path.split("/"):
            return [], "the claimed path leads out of the root, or is absolute; it was not looked at"
        parts = [part for part in path.split("/") if part not in ("", ".")]
        # What is left must still say which file is meant: "utils.py" of "a/b/utils.py" does not.
        for skip in range(max(1, len(parts) - 1)):
            rest = "/".join(parts[skip:])
            if self._is_file(rest):
                return [rest], ""
        if len(parts) == 2 and self._is_file(parts[1]):
            return [parts[1]], ""
        ending = "/" + "/".join(parts)
        alike = [file for file in self._files if file.endswith(ending)] if parts else []
        if len(alike) > _MOST_ALIKE:
            return [], f"{len(alike)} files of the tree end with this path"
        return alike, "" if alike else "no file of the tree has this path"

    def view(self, path: str) -> View | str:
        """Return the view of a file, or why it cannot be read."""
        if path not in self._views:
            try:
                self._views[path] = View(path, plain(read(self.root / path).text))
            except Unreadable as error:
                self._views[path] = str(error)
        return self._views[path]

    def _is_file(self, relative: str) -> bool:
        try:
            target = (self.root / relative).resolve()
            return target.is_relative_to(self.root) and target.is_file()
        except (OSError, ValueError, RuntimeError):
            return False

    @cached_property
    def _files(self) -> list[str]:
        found: list[str] = []
        for folder, folders, files in os.walk(self.root, followlinks=False):
            folders[:] = sorted(name for name in folders if name not in _SKIPPED)
            base = Path(folder).relative_to(self.root).as_posix()
            for name in sorted(files):
                relative = name if base == "." else f"{base}/{name}"
                if not (Path(folder) / name).is_symlink() or self._is_file(relative):
                    found.append(relative)
            if len(found) > _MOST_FILES:
                break
        return found
