"""Bad calls of Kimi delta attention: what it has beside the gated delta rule, and that the rest is checked alike."""

from __future__ import annotations

import torch

from tests.operators.bad_calls import (
    HV,
    KDA,
    KDA_CHUNK,
    KDA_DECODE,
    KDA_PREFILL,
    B,
    Call,
    K,
    Row,
    T,
    V,
    packed,
    to,
    with_grad,
)

SAFE = (KDA_CHUNK, KDA_PREFILL)


def gated(c: Call) -> Call:
    return {"use_gate_in_kernel": True, "A_log": torch.zeros(HV), "dt_bias": torch.zeros(HV * K)}


def bounded(c: Call) -> Call:
    return gated(c) | {"lower_bound": -5.0}


def bias(*shape: int) -> dict[str, torch.Tensor]:
    return {"dt_bias": torch.zeros(shape)}


ROWS = [
    Row(KDA, "g", f"shape {[B, T, HV, K]}", f"shape {[B, T, HV]}", lambda c: {"g": c["g"][..., 0].contiguous()}),
    Row(KDA, "g", "log gates g <= 0", "0.5", lambda c: {"g": torch.full_like(c["g"], 0.5)}),
    Row(KDA, "dt_bias", f"shape {[HV, K]}", f"shape {[HV]}", to(**bias(HV)), gated),
    Row(KDA, "dt_bias", f"shape {[HV, K]}", f"shape {[K, HV + 1]}", to(**bias(K, HV + 1)), gated),
    Row(KDA, "A_log", f"shape {[HV]}", f"shape {[HV, 1]}", to(A_log=torch.zeros(HV, 1)), gated),
    Row(KDA, "A_log", "None unless use_gate_in_kernel=True", "a tensor", to(A_log=torch.zeros(HV))),
    Row(KDA, "lower_bound", "None unless use_gate_in_kernel=True", "-5.0", to(lower_bound=-5.0)),
    *[
        Row(KDA, "lower_bound", "a finite number below 0, or None", repr(low), to(lower_bound=low), bounded)
        for low in (0.0, 1.0, float("-inf"), float("nan"), "-5", True)
    ],
    Row(SAFE, "safe_gate", "True or False", "1", to(safe_gate=1), to(safe_gate=True)),
    Row(SAFE, "safe_gate", "a lower_bound in [-5, 0) beside the gate", "None", to(safe_gate=True), gated),
    Row(SAFE, "safe_gate", "a lower_bound in [-5, 0)", "-5.5", to(safe_gate=True, lower_bound=-5.5), bounded),
    Row(
        SAFE, "g", "log gates of at least -5, as safe_gate promises", "-5.5",
        lambda c: {"g": torch.full_like(c["g"], -5.5)}, to(safe_gate=True),
    ),
    Row((KDA_CHUNK,), "cp_context", "None: it is not supported yet", "dict", to(cp_context={})),
    Row((KDA_CHUNK,), "max_num_seqs", "None: it is not supported yet", "int", to(max_num_seqs=4)),
    Row((KDA_CHUNK,), "use_graph", "False: a pack needs no mode", "True", to(use_graph=True)),
    Row((KDA_CHUNK,), "disable_recompute", "True or False", "1", to(disable_recompute=1), to(disable_recompute=True)),
    Row((KDA_CHUNK,), "return_intermediate_states", "True or False", "None", to(return_intermediate_states=None)),
    Row(
        (KDA_CHUNK,), "cu_seqlens_cpu", "the values of cu_seqlens, [0, 2, 5]", "[0, 3, 5]",
        to(cu_seqlens_cpu=torch.tensor([0, 3, 5])), lambda c: packed(c) | {"return_intermediate_states": True},
    ),
    Row(
        (KDA_DECODE,), "pool", f"shape [S, {HV}, {K}, {V}] in layout k_first", "the other layout",
        lambda c: {"pool": c["pool"].transpose(2, 3).contiguous()},
    ),
    Row(
        (KDA_CHUNK,), "return_intermediate_states", "torch.no_grad(): it is for inference", "requires_grad=True",
        with_grad("k"), to(return_intermediate_states=True),
    ),
]  # fmt: skip
