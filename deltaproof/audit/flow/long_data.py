"""Where flattened tensors get long: a server cuts its batches to some thousand tokens, training and video do not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch
    from deltaproof.audit.model.module import Module

_BACKWARD = re.compile(r"^\s*def \w*(backward|bwd)", re.MULTILINE)
_VOCABULARY = re.compile(r"logsumexp|cross_?entropy|log_softmax|soft_?cap", re.IGNORECASE)
_WIDE = re.compile(r"\bint64")


def long_data(function: Function, launches: Sequence[Launch]) -> bool:
    """Return whether a kernel's rows may be all tokens of a training batch, or are meant to need 64 bits.

    The sign of the first is a backward pass beside the kernel or a launch of it, of the second a cast in the kernel.
    Rows as long as a vocabulary need 64 bits in a server, too.
    """
    known: bool | None = function.__dict__.get("_long_data")
    if known is None:
        lines = function.module.lines[function.line - 1 : function.end_line]
        modules = [function.module, *(launch.host.module for launch in launches)]
        meant = _VOCABULARY.search(function.name) or any(_WIDE.search(line) for line in lines)
        known = bool(meant) or any(_trains(module) for module in modules)
        function.__dict__["_long_data"] = known
    return known


def _trains(module: Module) -> bool:
    known: bool | None = module.__dict__.get("_trains")
    if known is None:
        known = module.__dict__["_trains"] = _BACKWARD.search(module.text) is not None
    return known
