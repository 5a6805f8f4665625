"""Which calls are made to see the launches: data, one case a line or a product of lists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common import hopper_decode
from deltaproof.ops.common.calls import DecodeCall, DeltaRuleOptions, Drafts, PrefillCall, SequenceCall
from deltaproof.ops.gated_delta_rule import triton_backend as gated_delta_rule
from deltaproof.ops.kda import triton_backend as kda
from deltaproof.ops.kda.triton_chunk import hopper_scores_kernel

try:
    from deltaproof.ops.gated_delta_rule import hopper_backend as gated_delta_rule_hopper
    from deltaproof.ops.kda import hopper_backend as kda_hopper
except ImportError:  # what it is made of came to Gluon with Triton 3.6
    HOPPER = {}
else:
    HOPPER = {"gated_delta_rule": gated_delta_rule_hopper.HopperBackend(), "kda": kda_hopper.HopperBackend()}

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SEQUENCE_FORMS = ("chunk", "recurrent")


@dataclass(frozen=True)
class Case:
    """One call of a form.

    Attributes:
        full: every option that works in the kernel is on (normalisation, gate, beta's sigmoid), states are read, and
            a pool has flags for fresh rows; else none of it.
        sequences: how many there are.
        tokens: decode: tokens a row; else the length of the longest sequence.
        drafts: decode: room for drafts in a slot; then it is a speculative step.
        write: pool forms: "in_place", "other" (another slot) or "each" (decode: a slot a token).
        checkpoints: prefill: how many tokens apart states are kept.
        state: dtype of states.
        operator: the operator it is a form of.
        bound: lower bound of the gate in the kernel, of an operator that has it.
        intermediate: chunk: the state before each chunk is asked for.
        hopper: the kernels for compute capability 9.0 are taken where they take a call.
    """

    form: str
    dtype: str
    K: int
    V: int
    H: int = 16
    HV: int = 32
    full: bool = True
    layout: str = "k_first"
    varlen: bool = False
    chunk: int = 64
    sequences: int = 3
    tokens: int = 80
    drafts: int = 0
    write: str = "in_place"
    checkpoints: int | None = None
    state: str = "fp32"
    hopper: bool = False
    operator: str = "gated_delta_rule"
    bound: float | None = None
    intermediate: bool = False

    @property
    def label(self) -> str:
        """Return a short description: what differs from the usual comes last."""
        words = [] if self.operator == "gated_delta_rule" else [self.operator]
        words += [self.form, self.dtype, f"{self.K}x{self.V}", f"{self.H}/{self.HV}", self.layout]
        words += ["full" if self.full else "plain", *(["varlen"] if self.varlen else [])]
        words += [] if self.chunk == 64 else [f"c{self.chunk}"]
        words += [f"t{self.tokens}"] if self.form == "decode" else []
        words += [f"drafts{self.drafts}"] if self.drafts else []
        words += [] if self.sequences == 3 else [f"n{self.sequences}"]
        words += ["hopper"] if self.hopper else []
        words += [] if self.bound is None else [f"bound{self.bound:g}"]
        words += ["intermediate"] if self.intermediate else []
        words += [] if self.write == "in_place" else [f"write-{self.write}"]
        words += [f"every{self.checkpoints}"] if self.checkpoints else []
        return " ".join([*words, *([] if self.state == "fp32" else [f"state-{self.state}"])])

    def facts(self) -> dict[str, Any]:
        """Return what a rule about spills may name."""
        return {**asdict(self), "label": self.label}


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, grad: bool = False) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, requires_grad=grad)  # nobody reads it


def _call(case: Case, grad: bool) -> SequenceCall | DecodeCall | PrefillCall:
    low, K, V, H, HV = DTYPES[case.dtype], case.K, case.V, case.H, case.HV
    layout = StateLayout(case.layout)
    N, T = case.sequences, case.tokens
    B, T = (1, N * T) if case.varlen else (N, T)
    options = DeltaRuleOptions(
        scale=K**-0.5,
        normalize_qk=case.full,
        gate_in_kernel=case.full,
        beta_sigmoid=case.full,
        neg_eigval=case.full,
        layout=layout,
        chunk_size=case.chunk,
        lower_bound=case.bound,
    )
    gate = (K,) if case.operator == "kda" else ()
    common: dict[str, Any] = {
        "q": _tensor((B, T, H, K), low, grad),
        "k": _tensor((B, T, H, K), low, grad),
        "v": _tensor((B, T, HV, V), low, grad),
        "g": _tensor((B, T, HV, *gate), low if case.full else torch.float32, grad),
        "beta": _tensor((B, T, HV), low if case.full else torch.float32, grad),
        "options": options,
        "A_log": _tensor((HV,), torch.float32, grad=grad) if case.full else None,
        "dt_bias": _tensor((HV, *gate), torch.float32, grad=grad) if case.full else None,
    }
    cu_seqlens = torch.arange(N + 1, dtype=torch.int32) * case.tokens if case.varlen else None
    state = (HV, *layout.inner_shape(K, V))
    if case.form in SEQUENCE_FORMS:
        initial = _tensor((N, *state), DTYPES[case.state], grad=grad) if case.full else None
        into = None
        if case.intermediate:
            into = _tensor((B, -(-T // case.chunk), *state), torch.float32)
        return SequenceCall(
            **common, initial_state=initial, output_final_state=case.full, cu_seqlens=cu_seqlens, chunk_states=into
        )
    slots = torch.arange(N, dtype=torch.int32)
    pool: dict[str, Any] = {
        "pool": _tensor((2 * N, *state), DTYPES[case.state]),
        "read_index": slots,
        "has_initial_state": torch.ones(N, dtype=torch.bool) if case.full else None,
    }
    if case.write != "in_place":
        pool["write_index"] = slots + N if case.write == "other" else slots[:, None].repeat(1, T)
    if case.form == "decode":
        tokens = torch.full((N,), T, dtype=torch.int32) if case.full and T > 1 else None
        if case.drafts:
            kept = (_tensor((2 * N, 2, case.drafts, *common[x].shape[2:]), common[x].dtype) for x in Drafts._fields)
            pool |= {"drafts": Drafts(*kept), "draft_half": slots, "accepted": torch.ones(2 * N, dtype=torch.int32)}
        return DecodeCall(**common, **pool, num_tokens=tokens)
    if case.checkpoints:
        pool["checkpoint_every"] = case.checkpoints
        pool["checkpoint_index"] = slots[:, None]
    return PrefillCall(**common, **pool, cu_seqlens=cu_seqlens)


@contextmanager
def _hopper(there: bool) -> Iterator[None]:
    """Let the host code see a GPU of compute capability 9.0, or none."""
    really = hopper_decode.is_hopper
    hopper_decode.is_hopper = lambda device: there
    try:
        yield
    finally:
        hopper_decode.is_hopper = really


def run(case: Case) -> None:
    """Make the case's calls: forward, and of a form that has gradients forward and backward."""
    backend: Any = BACKENDS[case.operator]
    if case.hopper and case.form != "decode":
        backend = HOPPER.get(case.operator, backend)
    form = getattr(backend, case.form)
    with _hopper(case.hopper):
        with torch.no_grad():
            form(_call(case, grad=False))
        if case.form in SEQUENCE_FORMS and not case.intermediate:
            call = _call(case, grad=True)
            outputs = [x for x in form(call) if x is not None]
            names = ("q", "k", "v", "g", "beta", "A_log", "dt_bias", "initial_state")
            inputs = [x for name in names if (x := getattr(call, name)) is not None]
            torch.autograd.grad(outputs, inputs, [torch.empty_like(x) for x in outputs])


ODD_SIZES = ((33, 40), (256, 256), (128, 64), (1, 1))


def _forms(case: Case) -> tuple[Case, Case, Case]:
    """Return the case of the chunk form and its like for recurrent and decode."""
    return case, replace(case, form="recurrent"), replace(case, form="decode", tokens=1)


def _table() -> list[Case]:
    cases: list[Case] = []
    for size in (64, 128):
        case = Case("chunk", "bf16", size, size)
        cases += [*_forms(case), *_forms(replace(case, full=False, varlen=True, layout="v_first"))]
        prefill = replace(case, form="prefill", layout="v_first")
        cases += [replace(prefill, checkpoints=64), replace(prefill, full=False, varlen=True, write="other")]
        decode = replace(case, form="decode", tokens=4, layout="v_first")
        cases += [replace(decode, write="each", state="bf16")]
        cases += _forms(replace(case, dtype="fp16"))
        cases += _forms(replace(case, dtype="fp32"))
    case = Case("chunk", "bf16", 128, 128, full=False)
    cases += [replace(case, chunk=16, varlen=True), replace(case, chunk=32, full=True), replace(case, H=2, HV=4)]
    # products of a chunk are fp64 here
    cases += [replace(case, dtype="fp32", chunk=chunk) for chunk in (16, 32)]
    cases += _forms(Case("chunk", "bf16", 64, 128))
    for dtype in ("bf16", "fp32"):
        for K, V in ODD_SIZES:
            cases += _forms(Case("chunk", dtype, K, V, layout="v_first"))
    cases += _forms(Case("chunk", "bf16", 192, 96, layout="v_first"))
    for dtype in DTYPES:
        for layout in ("v_first", "k_first"):
            for K, V in ((64, 64), (128, 128), (33, 40), (256, 256)):
                cases += [Case("decode", dtype, K, V, layout=layout, tokens=4, drafts=4)]
    cases += [Case("decode", "bf16", 128, 128, layout="v_first", tokens=2, drafts=8, full=False, state="bf16")]
    if hopper_decode.hopper_speculation_kernel is not None:
        hopper = Case("decode", "bf16", 128, 128, layout="v_first", tokens=4, drafts=4, hopper=True)
        for state in DTYPES:
            cases += [replace(hopper, state=state), replace(hopper, drafts=8, full=False, state=state)]
        cases += [replace(hopper, K=64, V=size, drafts=drafts) for size in (64, 80) for drafts in (3, 8)]
    if HOPPER:
        for size in (64, 128):
            hopper = Case("chunk", "bf16", size, size, hopper=True)
            # few heads: long sequences are split
            split = replace(hopper, tokens=2100, H=2, HV=8)
            cases += [hopper, split, replace(split, dtype="fp16", full=False, varlen=True, layout="v_first")]
            cases += [replace(split, form="prefill", varlen=True)]
            hopper = replace(hopper, form="prefill", layout="v_first", state="bf16")
            cases += [replace(hopper, checkpoints=64), replace(hopper, full=False, varlen=True, write="other")]
        # one sequence is split with more heads
        hopper = Case("chunk", "bf16", 128, 128, sequences=1, tokens=4200, hopper=True)
        cases += [hopper, replace(hopper, varlen=True), replace(hopper, K=64, V=64, HV=64)]
        # the first stage has two value heads of a group at a time, or of two groups
        cases += [replace(hopper, HV=48), replace(hopper, K=64, V=64, dtype="fp16", HV=16, varlen=True)]
        cases += [replace(hopper, HV=16), replace(hopper, H=1, HV=1, full=False)]
    return cases


def _channel_table() -> list[Case]:
    """Return the cases of Kimi delta attention, whose states and tokens take the paths of the gated delta rule."""
    cases: list[Case] = []
    for size in (64, 128):
        case = Case("chunk", "bf16", size, size, H=32, layout="v_first", operator="kda")
        cases += [*_forms(case), *_forms(replace(case, full=False, varlen=True, layout="k_first"))]
        cases += _forms(replace(case, bound=-5.0))
        prefill = replace(case, form="prefill", bound=-5.0)
        cases += [replace(prefill, checkpoints=64), replace(prefill, full=False, bound=None, varlen=True)]
        cases += [replace(case, form="decode", tokens=4, write="each", state="bf16")]
        cases += [*_forms(replace(case, dtype="fp16")), *_forms(replace(case, dtype="fp32"))]
    case = Case("chunk", "bf16", 128, 128, full=False, operator="kda")
    cases += [replace(case, chunk=16, varlen=True), replace(case, chunk=32, full=True, bound=-5.0)]
    cases += [replace(case, H=2, HV=4), replace(case, intermediate=True), replace(case, full=True, bound=-1.0)]
    cases += [replace(case, dtype="fp32", chunk=chunk) for chunk in (16, 32)]
    for dtype in ("bf16", "fp32"):
        for K, V in ODD_SIZES:
            cases += _forms(Case("chunk", dtype, K, V, layout="v_first", operator="kda"))
    for layout in ("v_first", "k_first"):
        for K, V in ((64, 64), (128, 128), (33, 40)):
            cases += [Case("decode", "bf16", K, V, layout=layout, tokens=4, drafts=4, operator="kda")]
    if hopper_scores_kernel is not None:
        for K in (64, 128):
            hopper = Case("chunk", "bf16", K, 128, layout="v_first", hopper=True, operator="kda")
            cases += [hopper, replace(hopper, bound=-5.0)]
            cases += [replace(hopper, full=False, varlen=True, tokens=2100, H=2, HV=4)]
            cases += [replace(hopper, sequences=1, tokens=4200)]
            hopper = Case("chunk", "bf16", K, K, H=64, HV=64, hopper=True, operator="kda", bound=-5.0)
            cases += [hopper, replace(hopper, dtype="fp16", layout="v_first", varlen=True)]
            states = replace(hopper, intermediate=True)
            cases += [states, replace(states, layout="v_first", H=8, HV=8)]
            hopper = replace(hopper, form="prefill", layout="v_first", state="bf16")
            hopper = replace(hopper, checkpoints=64)
            cases += [hopper, replace(hopper, H=8, HV=8, varlen=True, tokens=2100, checkpoints=None, write="other")]
    return cases


CASES = (*_table(), *_channel_table())

BACKENDS = {"gated_delta_rule": gated_delta_rule.TritonBackend(), "kda": kda.TritonBackend()}
"""Whose host code is run, by operator."""
