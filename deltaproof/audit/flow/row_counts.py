"""Counts of rows under any name: the first size of activations that have two dimensions, one row a token."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deltaproof.audit.model.function import Function

_WEIGHT = re.compile(
    r"(^|_)(w\d?|wq|wk|wv|\w*weights?|scales?|zeros|bias|table|cache|pool|lut|codebook|b|B)(_|$)", re.I
)


def is_rows(host: Function, part: ast.expr) -> bool:
    """Return whether a name is the first size of a tensor of activations that has two dimensions."""
    if not isinstance(part, ast.Name):
        return False
    made = [each for each in host.flow.definitions(part.id)]
    if len(made) != 1 or made[0].value is None or made[0].kind not in ("assign", "unpacked"):
        return False
    tensor = _first_size(made[0].value, made[0].index if made[0].kind == "unpacked" else None)
    if tensor is None or _WEIGHT.search(tensor):
        return False
    return tensor in host.param_names and any(_two_dimensions(test, tensor) for test in _tests(host))


def _first_size(value: ast.expr, index: int | None) -> str | None:
    """Return x of ``x.size(0)``, ``x.shape[0]``, and of ``M, N = x.shape`` for M."""
    if index is not None:
        shape = isinstance(value, ast.Attribute) and value.attr == "shape" and isinstance(value.value, ast.Name)
        return value.value.id if index == 0 and shape else None  # type: ignore[attr-defined]
    place: ast.expr | None = None
    inner: ast.expr | None = None
    if isinstance(value, ast.Subscript) and isinstance(value.value, ast.Attribute) and value.value.attr == "shape":
        place, inner = value.slice, value.value.value
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "size":
        place, inner = (value.args[0] if value.args else None), value.func.value
    first = isinstance(place, ast.Constant) and place.value == 0
    return inner.id if first and isinstance(inner, ast.Name) else None


def _tests(host: Function) -> Iterator[ast.expr]:
    for node in host.nodes:
        raises = isinstance(node, ast.If) and node.body and isinstance(node.body[-1], ast.Raise)
        if raises or isinstance(node, ast.Assert):
            yield node.test  # type: ignore[attr-defined]


def _two_dimensions(test: ast.expr, tensor: str) -> bool:
    texts = (f"{tensor}.dim()", f"{tensor}.ndim", f"len({tensor}.shape)")
    return any(
        isinstance(node, ast.Compare)
        and len(node.ops) == 1
        and ast.unparse(node.left) in texts
        and isinstance(node.comparators[0], ast.Constant)
        and node.comparators[0].value == 2
        for node in ast.walk(test)
    )
