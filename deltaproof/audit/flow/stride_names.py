"""Which tensor a stride parameter belongs to, by the names that a kernel gives its parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_STRIDE = re.compile(r"^(?:strides?_|s_)(\w+)$|^(\w+?)_strides?(?:_(\w+))?$", re.IGNORECASE)
_POINTER = re.compile(r"(_?ptrs?|_?tensor|_?pointer)$", re.IGNORECASE)


_LETTERS = {"o": ("out", "output"), "q": ("query",), "k": ("key",), "v": ("value",)}
"""First letters that stand for a tensor's name, where no other tensor is called so."""


@dataclass(frozen=True)
class Owned:
    """A stride parameter.

    Attributes:
        name: the parameter.
        tensor: the pointer parameter that it belongs to.
        axis: what is left of its name: "b", "h", "bs", "row".
    """

    name: str
    tensor: str
    axis: str


def _plain(name: str) -> str:
    return _POINTER.sub("", name).lower().strip("_")


def owned_strides(function: Function) -> dict[str, Owned]:
    """Return the stride parameters whose tensor their names tell, by name; kept with the function."""
    kept: dict[str, Owned] | None = function.__dict__.get("_owned_strides")
    if kept is not None:
        return kept
    tensors = {_plain(param.name): param.name for param in function.params if not _STRIDE.match(param.name)}
    kept = {}
    for param in function.params:
        match = _STRIDE.match(param.name)
        if match is None:
            continue
        stem = (match[1] or f"{match[2]}_{match[3] or ''}").lower().strip("_")
        fits = [name for name in tensors if name and (stem == name or stem.startswith(name))]
        first = _LETTERS.get(stem.partition("_")[0], ())
        if "_" in stem and not fits and len(whole := [name for name in tensors if name in first]) == 1:
            kept[param.name] = Owned(param.name, tensors[whole[0]], stem.partition("_")[2])
            continue
        for tensor in sorted(fits, key=len, reverse=True)[:1]:
            axis = stem[len(tensor) :].strip("_")
            if stem == tensor or stem[len(tensor)] == "_" or len(axis) <= 3:
                kept[param.name] = Owned(param.name, tensors[tensor], axis)
    function.__dict__["_owned_strides"] = kept
    return kept
