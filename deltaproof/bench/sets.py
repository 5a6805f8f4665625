"""The named sets of workloads, by operator and verb. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from deltaproof.bench.models import Heads, model_heads
from deltaproof.bench.published import published
from deltaproof.bench.workload import DecodeWorkload, SequenceWorkload, Workload, read
from deltaproof.contracts.conventions import StateLayout
from deltaproof.contracts.errors import ContractError

Sets = Mapping[str, Mapping[str, tuple[Workload, ...]]]
"""Verb -> name -> workloads; the first is a GPU's default, ``smoke`` a CPU's."""
Lengths = tuple[int, ...]


def _sequences(*shapes: tuple[Heads, int, int], **more: Any) -> tuple[SequenceWorkload, ...]:
    return tuple(SequenceWorkload(heads=heads, lengths=(length,) * count, **more) for heads, length, count in shapes)


def _packs(heads: Iterable[Heads], lengths: Iterable[Lengths], **more: Any) -> tuple[SequenceWorkload, ...]:
    return tuple(SequenceWorkload(heads=own, lengths=these, **more) for own, these in product(heads, lengths))


def _pool(*shapes: tuple[Heads, int]) -> tuple[DecodeWorkload, ...]:
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
PUBLISHED = {
    "prefill": tuple(shape.workload for shape in published().prefill),
    "backward": tuple(shape.workload for shape in published().backward),
}
GRID = _packs(
    dict.fromkeys(workload.heads for workload in PUBLISHED["prefill"]),
    ((2048,), (8192,), (32768,), (1024,) * 8, (4096,) * 8),
)
"""Every pair of heads of the published prefills, with five of its 19 lists of lengths."""
MODEL_LENGTHS: tuple[Lengths, ...] = ((2048,), (8192,), (32768,), (1024,) * 8)
RAGGED: tuple[Lengths, ...] = (
    (24576, *(256,) * 32),
    (8192, 4096, 2048, 1024, 512, 256, 128, 64),
    (4095, 2049, 1023, 513, 257, 129, 65, 33, 1),
    (3274, 1029, 2909, 5061, 2011, 3793, 9932, 4759),
    (4096, 0, 100, 0, 2000),
    (100,) * 128,
)
"""Packs: a long sequence before short ones, halves, lengths beside multiples of a chunk, random, empty ones, short."""
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
MODEL_ROWS = (1, 64)
POOL_BF16 = (
    *(DecodeWorkload(heads=heads, rows=256) for heads in ((16, 32), (16, 64))),
    *(DecodeWorkload(heads=heads, rows=256, state_dtype="bfloat16") for heads in ((16, 32), (16, 64))),
)
SPECULATIVE = tuple(
    DecodeWorkload(heads=heads, rows=rows, drafts=drafts)
    for heads, rows in (((16, 32), 64), ((16, 32), 128), ((16, 64), 256))
    for drafts in (0, 2, 3, 4, 8)
)
SMOKE = (
    SequenceWorkload(heads=(2, 2), lengths=(64,), K=32, V=32),
    SequenceWorkload(heads=(1, 4), lengths=(40, 0, 70), K=32, V=16),
)
SMOKE_POOL = (
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
KDA_SMOKE = (
    SequenceWorkload(heads=(2, 2), lengths=(64,), K=32, V=32, layout=StateLayout.V_FIRST),
    SequenceWorkload(heads=(1, 4), lengths=(40, 0, 70), K=32, V=16),
)

MORE = {
    "models": _packs(model_heads("gated_delta_rule"), MODEL_LENGTHS),
    "ragged": _packs(((4, 16), (16, 32), (16, 64)), RAGGED),
    "smoke": SMOKE,
}
KDA_SEQUENCES = {
    "peers": KDA_PEERS,
    "models": _packs(model_heads("kda"), MODEL_LENGTHS, layout=StateLayout.V_FIRST),
    "ragged": _packs(((8, 8), (32, 32)), RAGGED, layout=StateLayout.V_FIRST),
    "smoke": KDA_SMOKE,
}
VERBS = ("prefill", "backward", "decode")
SETS: Mapping[str, Sets] = {
    "gated_delta_rule": {
        "prefill": {"peers": PEERS, "grid": GRID, "published": PUBLISHED["prefill"], **MORE},
        "backward": {"peers": PEERS, "published": PUBLISHED["backward"], **MORE},
        "decode": {
            "pool": POOL,
            "pool_k_first": tuple(replace(workload, layout=StateLayout.K_FIRST) for workload in POOL),
            "pool_bf16": POOL_BF16,
            "speculative": SPECULATIVE,
            "models": _pool(*product(model_heads("gated_delta_rule"), MODEL_ROWS)),
            "smoke": SMOKE_POOL,
        },
    },
    "kda": {
        "prefill": KDA_SEQUENCES,
        "backward": KDA_SEQUENCES,
        "decode": {
            "pool": KDA_POOL,
            "models": _pool(*product(model_heads("kda"), MODEL_ROWS)),
            "smoke": SMOKE_POOL,
        },
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
    return "smoke" if device == "cpu" else next(iter(sets_of(operator, verb)))


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
