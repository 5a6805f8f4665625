"""The named sets of workloads, by operator and verb. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deltaproof.bench.workload import DecodeWorkload, SequenceWorkload, Workload, read
from deltaproof.contracts.conventions import StateLayout
from deltaproof.contracts.errors import ContractError

Sets = Mapping[str, Mapping[str, tuple[Workload, ...]]]
"""Verb -> name -> workloads; the first is a GPU's default, ``tiny`` a CPU's."""


def _sequences(*shapes: tuple[tuple[int, int], int, int], **more: Any) -> tuple[SequenceWorkload, ...]:
    return tuple(SequenceWorkload(heads=heads, lengths=(length,) * count, **more) for heads, length, count in shapes)


def _pool(*shapes: tuple[tuple[int, int], int]) -> tuple[DecodeWorkload, ...]:
    return tuple(DecodeWorkload(heads=heads, rows=rows) for heads, rows in shapes)


PEERS = _sequences(
    ((2, 8), 2048, 1),
    ((2, 8), 8192, 1),
    ((2, 8), 32768, 1),
    ((2, 8), 1024, 8),
    ((4, 16), 8192, 1),
    ((4, 16), 1024, 8),
    ((16, 32), 2048, 1),
    ((16, 32), 8192, 1),
    ((16, 32), 32768, 1),
    ((16, 32), 1024, 8),
    ((16, 64), 8192, 1),
    ((16, 64), 32768, 1),
    ((16, 64), 1024, 8),
    ((16, 64), 4096, 8),
)
# in every pool set rows times value heads go from 32 to 16384
POOL = _pool(
    ((16, 32), 1),
    ((16, 32), 8),
    ((16, 32), 32),
    ((16, 32), 64),
    ((16, 64), 64),
    ((16, 32), 128),
    ((16, 64), 256),
)
POOL_BF16 = (
    *(DecodeWorkload(heads=heads, rows=256) for heads in ((16, 32), (16, 64))),
    *(DecodeWorkload(heads=heads, rows=256, state_dtype="bfloat16") for heads in ((16, 32), (16, 64))),
)
SPECULATIVE = tuple(
    DecodeWorkload(heads=heads, rows=rows, drafts=drafts)
    for heads, rows in (((16, 32), 64), ((16, 32), 128), ((16, 64), 256))
    for drafts in (0, 2, 3, 4, 8)
)
TINY = (
    SequenceWorkload(heads=(2, 2), lengths=(64,), K=32, V=32),
    SequenceWorkload(heads=(1, 4), lengths=(40, 0, 70), K=32, V=16),
)
TINY_POOL = (
    DecodeWorkload(heads=(2, 4), rows=3, K=32, V=16),
    DecodeWorkload(heads=(2, 2), rows=8, K=32, V=32, layout=StateLayout.K_FIRST),
    DecodeWorkload(heads=(2, 4), rows=3, K=32, V=16, drafts=2),
)

# as many query/key heads as value heads, as Kimi Linear has, and the layout of pools
KDA_PEERS = _sequences(
    ((8, 8), 2048, 1),
    ((8, 8), 8192, 1),
    ((8, 8), 32768, 1),
    ((8, 8), 1024, 8),
    ((32, 32), 8192, 1),
    ((32, 32), 32768, 1),
    ((32, 32), 1024, 8),
    ((64, 64), 2048, 1),
    ((64, 64), 8192, 1),
    ((64, 64), 32768, 1),
    ((64, 64), 1024, 8),
    layout=StateLayout.V_FIRST,
)
KDA_POOL = _pool(
    ((32, 32), 1),
    ((32, 32), 8),
    ((32, 32), 32),
    ((32, 32), 64),
    ((32, 32), 128),
    ((64, 64), 64),
    ((32, 32), 256),
    ((64, 64), 256),
)
KDA_TINY = (
    SequenceWorkload(heads=(2, 2), lengths=(64,), K=32, V=32, layout=StateLayout.V_FIRST),
    SequenceWorkload(heads=(1, 4), lengths=(40, 0, 70), K=32, V=16),
)

VERBS = ("prefill", "backward", "decode")
SETS: Mapping[str, Sets] = {
    "gated_delta_rule": {
        "prefill": {"peers": PEERS, "tiny": TINY},
        "backward": {"peers": PEERS, "tiny": TINY},
        "decode": {
            "pool": POOL,
            "pool_k_first": tuple(replace(workload, layout=StateLayout.K_FIRST) for workload in POOL),
            "pool_bf16": POOL_BF16,
            "speculative": SPECULATIVE,
            "tiny": TINY_POOL,
        },
    },
    "kda": {
        "prefill": {"peers": KDA_PEERS, "tiny": KDA_TINY},
        "backward": {"peers": KDA_PEERS, "tiny": KDA_TINY},
        "decode": {"pool": KDA_POOL, "tiny": TINY_POOL},
    },
}
"""Operator -> its sets; an operator that is not here has no bench."""


def sets_of(operator: str, verb: str) -> Mapping[str, tuple[Workload, ...]]:
    """Return an operator's sets for a verb by name.

    Raises:
        ContractError: the operator has no bench.
    """
    if operator not in SETS:
        raise ContractError("--operator", f"one that has workloads to time: {', '.join(SETS)}", repr(operator))
    return SETS[operator][verb]


def default_set(operator: str, verb: str, device: str) -> str:
    """Return the name of the set that a run without --shapes takes.

    Raises:
        ContractError: see ``sets_of``.
    """
    return "tiny" if device == "cpu" else next(iter(sets_of(operator, verb)))


def find(operator: str, verb: str, shapes: str) -> tuple[Workload, ...]:
    """Return the workloads of a named set, or of a JSON file (see ``read``).

    Raises:
        ContractError: the operator has no bench, no set has this name and no such file exists, or the file holds
            something else.
    """
    known = sets_of(operator, verb)
    if shapes in known:
        return known[shapes]
    path = Path(shapes)
    if not path.is_file():
        raise ContractError("--shapes", f"one of {', '.join(known)} or a JSON file", repr(shapes))
    return read(path, verb)
