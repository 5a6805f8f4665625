"""Ranges of an index that branches make differently."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import accesses
from deltaproof.audit.flow.bounds import Compared, compared
from deltaproof.audit.flow.polynomials import indices, ranges

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function


def in_every_arm(kernel: Function) -> set[str]:
    """Return the extents of the ranges that a masked name holds whichever branch made it: ``row = i`` or ``i - d``."""
    found: set[str] = set()
    index = indices(kernel)
    for access in accesses(kernel):
        for one in compared(index, access.mask) if access.mask is not None else ():
            if not isinstance(one, Compared) or one.equal or not isinstance(one.node.left, ast.Name):
                continue
            if len(one.node.ops) == 1 and isinstance(one.node.ops[0], (ast.Lt, ast.LtE)):
                every = [{each.text for each in ranges(poly)} for poly in index.pointers(one.node.left)]
                found |= set.intersection(*every) if every else set()
    return found
