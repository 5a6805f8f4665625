"""What fla offers of each operator: its functions, what only they take, and what they lack by fla's own word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deltaproof.ops.common.calls import SequenceCall

HOPPER = (
    "chunk_bwd_dqkwg raises RuntimeError on Hopper with Triton from 3.4.0 to before 3.7.1, whose results it calls"
    " incorrect"
)
COUNTS_CHUNKS = "chunk counts the chunks of a pack on the host, as its prepare_chunk_indices says"
FLOAT32_STATE = "chunk_kda asserts an initial state in float32"


@dataclass(frozen=True)
class Functions:
    """fla's functions for one operator.

    Attributes:
        operator: its name here.
        module: where fla keeps them.
        chunk, recurrent: their names.
        taken: arguments both must name. Unknown names end in their **kwargs and are dropped without a word, so an
            older fla would compute something else.
        arguments: form and call -> the arguments that these functions alone have.
        partners: packages to which fla can hand calls of this operator.
        lacks: capability -> reason: what fla refuses itself, says that it does not do, or has no argument for.
        gated_kernel_refuses: the same, where fla refuses its kernel for the backward with a gate a head.
    """

    operator: str
    module: str
    chunk: str
    recurrent: str
    taken: frozenset[str]
    arguments: Callable[[str, SequenceCall], dict[str, Any]]
    partners: frozenset[str]
    lacks: Mapping[str, str]
    gated_kernel_refuses: Mapping[str, str]


def _gated_arguments(form: str, call: SequenceCall) -> dict[str, Any]:
    chunk = {"chunk_size": call.options.chunk_size} if form == "chunk" else {}
    return {"dt_bias": call.dt_bias, **chunk}


def _kda_arguments(form: str, call: SequenceCall) -> dict[str, Any]:
    options = call.options
    chunk = {"chunk_size": options.chunk_size, "safe_gate": options.safe_gate} if form == "chunk" else {}
    # its gradient comes back as [HV * K]
    dt_bias = None if call.dt_bias is None else call.dt_bias.flatten()
    return {"dt_bias": dt_bias, "lower_bound": options.lower_bound, **chunk}


_TAKEN = frozenset({"state_v_first", "use_beta_sigmoid_in_kernel", "allow_neg_eigval"})
_NO_RECURRENT_BACKWARD = "the backward of fused_recurrent_gated_delta_rule raises NotImplementedError"

GATED_DELTA_RULE = Functions(
    operator="gated_delta_rule",
    module="fla.ops.gated_delta_rule",
    chunk="chunk_gated_delta_rule",
    recurrent="fused_recurrent_gated_delta_rule",
    taken=_TAKEN,
    arguments=_gated_arguments,
    partners=frozenset({"flash_qla", "tilelang"}),
    lacks={"recurrent/backward": _NO_RECURRENT_BACKWARD, "sync_free_varlen": COUNTS_CHUNKS},
    gated_kernel_refuses={"backward": f"{HOPPER}; recurrent: {_NO_RECURRENT_BACKWARD}"},
)

KDA = Functions(
    operator="kda",
    module="fla.ops.kda",
    chunk="chunk_kda",
    recurrent="fused_recurrent_kda",
    taken=_TAKEN | {"lower_bound"},
    arguments=_kda_arguments,
    partners=frozenset({"flash_kda", "tilelang"}),
    lacks={
        "recurrent/backward": "fused_recurrent_kda launches its kernel outside of autograd: nothing is recorded",
        "sync_free_varlen": f"{COUNTS_CHUNKS}; use_graph=True would not, and leaves rows past the last bound undefined",
        "chunk/chunk_size:16": "chunk_kda raises ValueError: chunk_size must be either 32 or 64",
        "chunk/state:bfloat16": FLOAT32_STATE,
        "chunk/state:float16": FLOAT32_STATE,
        "gate_without_rate": "chunk_kda raises ValueError, and fused_recurrent_kda documents A_log of None with a"
        " lower bound alone",
        "chunk_states": "return_intermediate_states documents bfloat16 and gives the dtype of k, while the final state"
        " is in float32",
    },
    # its backward has a kernel of its own, which refuses nothing
    gated_kernel_refuses={},
)
