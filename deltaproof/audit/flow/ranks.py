"""Ranks, process groups and collectives of a distributed program."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import called_name, origins

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

COLLECTIVES = frozenset(
    (
        "all_reduce",
        "all_gather",
        "all_gather_into_tensor",
        "all_gather_object",
        "allgather",
        "allreduce",
        "all_to_all",
        "all_to_all_single",
        "barrier",
        "broadcast",
        "broadcast_object_list",
        "broadcast_object",
        "bcast",
        "gather",
        "gather_object",
        "reduce",
        "reduce_scatter",
        "reduce_scatter_tensor",
        "scatter",
        "scatter_object_list",
        "monitored_barrier",
    )
)
_ROOTED = frozenset(
    ("broadcast", "broadcast_object_list", "gather", "gather_object", "reduce", "scatter", "scatter_object_list")
)
_RANK = re.compile(r"(^|.*_)rank(_id)?$|^process_index$")
_OTHER_DATA = re.compile(r"(^|_)(dp|data_parallel|worker|replica)(_|$)")
_DISTRIBUTED = re.compile(r"(^|\.|_)(dist|distributed|comm|communicator|group|pg|process_group|collective\w*)(\.|$)")


def rank_names(function: Function, expr: ast.AST, *, follow: bool = True) -> set[str]:
    """Return the names of ranks that an expression depends on, those of data-parallel ranks left out.

    Args:
        function: the function it stands in.
        expr: the expression.
        follow: whether to follow names to what they were given.
    """
    names = {node.attr for node in ast.walk(expr) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(expr) if isinstance(node, ast.Name)}
    if follow:
        found = origins(function, expr)
        names |= found.names
        names |= {re.sub(r"^get_", "", name.rpartition(".")[2]) for name, _ in found.calls if name.endswith("rank")}
    return {name for name in names if _RANK.match(name) and not _OTHER_DATA.search(name)}


def is_collective(function: Function, call: ast.Call) -> bool:
    """Return whether a call is one that all ranks of a group must make."""
    name = called_name(function, call)
    first, _, last = name.rpartition(".")
    if last not in COLLECTIVES or not first:
        return False
    return _DISTRIBUTED.search(first) is not None or first.endswith(("dist", "_group"))


def is_rooted(function: Function, call: ast.Call) -> bool:
    """Return whether a collective of torch.distributed names a root."""
    name = called_name(function, call)
    first, _, last = name.rpartition(".")
    return last in _ROOTED and first.rpartition(".")[2].strip("_") in ("dist", "distributed", "distributed_c10d")
