"""Which functions a kernel runs: itself and every helper it calls, over files, out of the source alone."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from deltaproof.verify.source_mutants.source import Source

Function = tuple[str, str]
"""A module's dotted name and a function's name."""


def _known(source: Source) -> dict[str, Function]:
    """Return what the names of a module mean, for its own kernels and what it imports by name."""
    names = {kernel.name: (source.module, kernel.name) for kernel in source.kernels()}
    for node in source.tree.body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names.update({item.asname or item.name: (node.module, item.name) for item in node.names})
    return names


def runs(files: Mapping[str, Source]) -> dict[Function, frozenset[Function]]:
    """Return for every kernel and helper the functions that a call of it can run, itself included."""
    direct: dict[Function, set[Function]] = {}
    for source in files.values():
        known = _known(source)
        for kernel in source.kernels():
            used = {item.id for item in ast.walk(kernel.node) if isinstance(item, ast.Name)}
            direct[source.module, kernel.name] = {known[name] for name in used & known.keys()}
    return {function: _closure(function, direct) for function in direct}


def _closure(function: Function, direct: Mapping[Function, set[Function]]) -> frozenset[Function]:
    found = {function}
    waiting = [function]
    while waiting:
        new = {item for item in direct[waiting.pop()] if item in direct} - found
        found |= new
        waiting += new
    return frozenset(found)
