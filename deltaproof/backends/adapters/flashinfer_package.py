"""An installed FlashInfer: its functions for the gated delta rule, and what this version of them lacks.

Up to 0.6 its prefill on Hopper is C++ that nvcc compiles at the first call; from 0.7 on it is CuTe DSL, which compiles
itself, and can split sequences inside the card.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from deltaproof.backends.adapters.fla_modes import installed
from deltaproof.contracts.errors import ContractError

PACKAGE = "flashinfer-python"
PREFILL = "flashinfer.gdn_prefill"
DECODE = "flashinfer.gdn_decode"
TAKEN = frozenset(
    {"q", "k", "v", "g", "beta", "scale", "initial_state", "output_final_state", "cu_seqlens",
     "use_qk_l2norm_in_kernel", "output", "output_state"}
)  # fmt: skip
DECODE_TAKEN = frozenset(
    {"q", "k", "v", "state", "A_log", "a", "dt_bias", "b", "scale", "output", "use_qk_l2norm", "initial_state",
     "initial_state_indices", "output_state_indices"}
)  # fmt: skip
"""Arguments that its functions must name."""
SPLITS = "use_cp"
"""The argument with which its prefill splits sequences inside the card."""
KERNELS: Mapping[str, tuple[str, ...]] = {
    PREFILL: (
        "get_gdn_prefill_module",
        "chunk_gated_delta_rule_sm90",
        "chunk_gated_delta_rule_sm100",
        "chunk_gated_delta_rule_sm120",
        "cp_delta_rule_dsl_sm90",
        "cp_delta_rule_dsl_sm100",
        "cp_delta_rule_dsl_sm120",
    ),
    DECODE: ("run_pretranspose_decode",),
}
"""Module -> functions in it, of one version or another, each of which launches one kernel or chain of kernels."""

NOT_COMPUTED = "chunk_gated_delta_rule has no argument for it: its caller computes it beforehand"
IN_KERNEL = "its decode computes it itself, from raw values"
LACKS: Mapping[str, str] = {
    "device:cpu": "its kernels need a GPU",
    "backward": "its functions record no gradient",
    "dtype:float32": "its kernels take float16 and bfloat16",
    "mixed_dtypes": "it refuses q, k and v of different dtypes",
    **dict.fromkeys(
        ("chunk/head_size:64", "chunk/head_size:other"), "its kernels for Hopper are written for heads of 128"
    ),
    **dict.fromkeys(("decode/head_size:64", "decode/head_size:other"), "its decode asserts K and V of at least 128"),
    "chunk_size:16": "its chunks have 64 tokens",
    "chunk_size:32": "its chunks have 64 tokens",
    "chunk_states": "its checkpoints are the states after whole chunks, without the first",
    "chunk/gate_in_kernel": NOT_COMPUTED,
    "chunk/beta_sigmoid": NOT_COMPUTED,
    "decode/gate_given": IN_KERNEL,
    "decode/beta_given": IN_KERNEL,
    "decode/neg_eigval": "its decode has no argument for it",
    "decode/several_tokens": "gated_delta_rule_decode_pretranspose asserts one token for float32 states",
    "decode/fresh_rows": "its decode has no argument for it",
    "decode/ragged_rows": "its decode has no argument for it",
    "decode/token_writes": "it asserts one write index a row",
    "decode/drafts": "its decode has no argument for it",
    "decode/state:bfloat16": "documented: row 0 of the pool is then a buffer that padding rows read and write",
    "decode/state:float16": "its decode takes float32 and bfloat16 states",
}
"""What it refuses, has no argument for, or says that it does not do; what it takes is run, and may fail."""


@dataclass(frozen=True)
class Package:
    """The installed package.

    Attributes:
        version: of the distribution, with CuTe DSL's where that compiles its kernels.
        chunk, decode: its functions; decode is None where CuTe DSL, which compiles it, is not there.
        kernels: its modules, with names of functions in them that launch kernels.
        splits: its prefill can split sequences inside the card.
        lacks: capability -> reason.
    """

    version: str
    chunk: Callable[..., Any]
    decode: Callable[..., Any] | None
    kernels: tuple[tuple[ModuleType, str], ...]
    splits: bool
    lacks: Mapping[str, str]


def load(name: str, must_split: bool) -> Package:
    """Import FlashInfer's functions.

    Args:
        name: of the backend, for errors.
        must_split: whether it needs to be told when to split sequences.

    Raises:
        ContractError: it or what it needs is not installed, this machine's GPU is too old for it, or it is another
            version whose arguments differ.
    """
    if importlib.util.find_spec("flashinfer") is None:
        expected = f"package {PACKAGE} for {name} (pip install {PACKAGE}[cu13])"
        raise ContractError("backend", expected, "no package 'flashinfer'")
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 9:
        got = "compute capability {}.{}".format(*torch.cuda.get_device_capability())
        raise ContractError("backend", f"a GPU of compute capability 9.0 or more for {name}", got)
    try:
        modules = {module: importlib.import_module(module) for module in KERNELS}
    except (ImportError, RuntimeError) as error:
        # CuTe DSL raises RuntimeError where its libraries for no version of CUDA are there
        lines = str(error).strip().splitlines() or [type(error).__name__]
        expected = f"package {PACKAGE} with what it needs (pip install {PACKAGE}[cu13])"
        raise ContractError("backend", expected, lines[0]) from error
    version = installed(PACKAGE) or str(getattr(importlib.import_module("flashinfer"), "__version__", "unknown"))
    chunk = modules[PREFILL].chunk_gated_delta_rule
    decode = modules[DECODE].gated_delta_rule_decode_pretranspose
    for function, taken in ((chunk, TAKEN), (decode, DECODE_TAKEN)):
        if lacking := taken - set(inspect.signature(function).parameters):
            text = f"{PACKAGE} {version}, whose {function.__name__} has no {', '.join(sorted(lacking))}"
            raise ContractError("backend", f"{PACKAGE} >= 0.6.13", text)
    splits = SPLITS in inspect.signature(chunk).parameters
    if must_split and not splits:
        text = f"{PACKAGE} {version}, whose chunk_gated_delta_rule has no {SPLITS}"
        raise ContractError("backend", f"{PACKAGE} >= 0.7 for {name}", text)
    dsl = installed("nvidia-cutlass-dsl") if splits else None
    return Package(
        version=f"{version}; nvidia-cutlass-dsl {dsl}" if dsl else version,
        chunk=chunk,
        decode=decode if callable(getattr(modules[DECODE], "run_pretranspose_decode", None)) else None,
        kernels=tuple(
            (modules[module], function)
            for module, functions in KERNELS.items()
            for function in functions
            if callable(getattr(modules[module], function, None))
        ),
        splits=splits,
        lacks={**LACKS, **_of_this_version(modules[PREFILL], splits)},
    )


def _of_this_version(prefill: ModuleType, splits: bool) -> dict[str, str]:
    lacks: dict[str, str] = {}
    if importlib.util.find_spec("flashinfer.gdn_kernels.qk_l2norm") is None:
        lacks["chunk/normalize_qk"] = "this version takes use_qk_l2norm_in_kernel and does not look at it"
    taken = getattr(prefill, "_STATE_DTYPES", (torch.float32,))
    for dtype in (torch.bfloat16, torch.float16):
        if dtype not in taken:
            lacks[f"chunk/state:{str(dtype).removeprefix('torch.')}"] = "this version's states are float32"
    if splits:
        lacks["chunk/empty"] = "it raises ValueError where there are no sequences"
    return lacks
