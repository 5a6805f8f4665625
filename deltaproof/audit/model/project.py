"""All files of a tree, parsed when they are asked for, and what goes from file to file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from deltaproof.audit.model.function import Function, Launch
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.source import Source, Unreadable, read

_INDEXED = re.compile(r"\b(\w+)\[")


class Project:
    """A tree of source files.

    Attributes:
        root: the folder that paths are relative to.
        paths: every file of the tree that may be looked at.
    """

    def __init__(self, root: Path, paths: Sequence[Path]) -> None:
        self.root = root
        self.paths = list(paths)
        self._modules: dict[Path, Module | Unreadable] = {}
        self._sources: dict[Path, Source | Unreadable] = {}
        self._named: dict[str, Path | None] = {}

    def relative(self, path: Path) -> str:
        """Return a path relative to the root, with "/"."""
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return path.as_posix()

    def source(self, path: Path) -> Source:
        """Return a file's text, read once.

        Raises:
            Unreadable: see ``read``.
        """
        found = self._sources.get(path)
        if found is None:
            try:
                found = read(path)
            except Unreadable as error:
                found = error
            self._sources[path] = found
        if isinstance(found, Unreadable):
            raise found
        return found

    def module(self, path: Path) -> Module:
        """Return a parsed file, parsed once.

        Raises:
            Unreadable: it cannot be read or parsed.
        """
        found = self._modules.get(path)
        if found is None:
            try:
                found = Module(self.relative(path), self.source(path))
            except Unreadable as error:
                found = error
            self._modules[path] = found
        if isinstance(found, Unreadable):
            raise found
        return found

    def _try(self, path: Path) -> Module | None:
        try:
            return self.module(path)
        except Unreadable:
            return None

    @cached_property
    def _by_name(self) -> dict[str, Path]:
        found = {}
        for path in self.paths:
            parts = Path(self.relative(path)).with_suffix("").parts
            found[".".join(parts[:-1] if parts and parts[-1] == "__init__" else parts)] = path
        return found

    def named(self, name: str) -> Module | None:
        """Return the module with a dotted name, also where the name lacks or has the tree's first folder."""
        if name not in self._named:
            path = self._by_name.get(name)
            if path is None:
                ends = [at for known, at in self._by_name.items() if known.endswith(f".{name}")]
                path = ends[0] if len(ends) == 1 else None
            self._named[name] = path
        found = self._named[name]
        return None if found is None else self._try(found)

    def function(self, name: str, near: Module | None = None, depth: int = 3) -> Function | None:
        """Return the function with a dotted name, through re-exports.

        Args:
            name: as ``Module.resolve`` gives it.
            near: the module that uses it: a bare name is looked for there.
            depth: how many re-exports to follow.
        """
        if near is not None and name in near.by_qualname:
            return near.by_qualname[name]
        module_name, _, last = name.rpartition(".")
        module = self.named(module_name) if module_name else None
        if module is None:
            return None
        if last in module.by_qualname:
            return module.by_qualname[last]
        again = module.imports.get(last)
        return self.function(again, None, depth - 1) if again and again != name and depth else None

    def kernel_of(self, launch: Launch) -> Function | None:
        """Return the kernel that a launch names, if it can be found."""
        return self.function(launch.name, launch.host.module)

    @cached_property
    def _indexing(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in self.paths:
            try:
                text = self.source(path).text
            except Unreadable:
                continue
            if "](" in text:
                for name in set(_INDEXED.findall(text)):
                    found.setdefault(name, []).append(path)
        return found

    def launches_of(self, kernel: Function) -> list[Launch]:
        """Return the launches of a kernel anywhere in the tree."""
        found = []
        for path in self._indexing.get(kernel.name, []):
            module = self._try(path)
            for launch in [] if module is None else module.launches_by_name.get(kernel.name, ()):
                if self.kernel_of(launch) in (kernel, None):
                    found.append(launch)
        return found
