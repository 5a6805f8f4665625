"""The Triton backward: gradients against the float64 oracle, and what no gradient may depend on.

``test_triton_interpreted.py`` runs this file: on the CPU in Triton's interpreter, on a GPU as it is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deltaproof.ops.common import triton_recurrent_backward
from deltaproof.ops.common.allocation import forced_init
from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.triton_host import aligned
from deltaproof.ops.common.triton_language import INTERPRETED
from deltaproof.ops.gated_delta_rule import oracle
from deltaproof.ops.gated_delta_rule.triton_backend import TritonBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.expected import GRADIENT_INPUTS
from deltaproof.verify.probe import Context, probes
from deltaproof.verify.probes._runs import drawn_cotangents
from deltaproof.verify.target import Target

DEVICE = "cpu" if INTERPRETED else "cuda"
CONTEXT = Context(Target(TritonBackend(), operator("gated_delta_rule"), "test", face=False), seed=0, device=DEVICE)
FORMS = pytest.mark.parametrize("form", ["chunk", "recurrent"])
IN_KERNEL: dict[str, Any] = {"gate_in_kernel": True, "beta_sigmoid": True, "neg_eigval": True}
Gradients = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    """Let the recurrent backward keep a state every 4 tokens, so that few tokens are several segments."""
    monkeypatch.setattr(triton_recurrent_backward, "SEGMENT", 4)


def small(form: str, label: str = "", **changes: Any) -> Case:
    """Return a case of two chunks or, token by token, of two segments, with grouped heads and odd sizes."""
    T = 19 if form == "chunk" else 6
    return Case(form, label, **{"B": 1, "T": T, "H": 1, "HV": 2, "K": 9, "V": 5, "chunk_size": 16} | changes)


def pulled_back(
    case: Case, call: SequenceCall, do: torch.Tensor | None, d_final: torch.Tensor | None
) -> tuple[Gradients, torch.Tensor]:
    """Return the gradients of every input for cotangents of o and of the final state, and o."""
    leaves = {name: getattr(call, name) for name in GRADIENT_INPUTS if getattr(call, name) is not None}
    leaves = {name: x.detach().requires_grad_() for name, x in leaves.items()}
    o, final = getattr(TritonBackend(), case.form)(call.with_(**leaves))
    roots = [(x, d) for x, d in ((o, do), (final, d_final)) if d is not None]
    found = torch.autograd.grad([x for x, _ in roots], list(leaves.values()), [d for _, d in roots])
    return dict(zip(leaves, found, strict=True)), o.detach()


def drawn(case: Case) -> tuple[SequenceCall, torch.Tensor, torch.Tensor]:
    """Return a case's call and cotangents of o and of the final state."""
    call = CONTEXT.call(case)
    return call, *drawn_cotangents(case, CONTEXT, call, "nan").values()


def assert_same_bits(got: Gradients, want: Gradients) -> None:
    assert got.keys() == want.keys()
    for name, x in want.items():
        assert bool(x.isfinite().all()), name
        assert got[name].dtype == x.dtype and torch.equal(got[name], x), name


AGAINST_THE_ORACLE = {
    "both layouts and all options": {"layout": "v_first", **IN_KERNEL},
    "the final state alone": {"label": "state-only"},
    "the output alone": {"label": "o-only", "normalize": False},
    "no initial state": {"initial_state": False},
    "no initial state, the final state alone": {"label": "state-only", "initial_state": False, "layout": "v_first"},
    "no final state": {"label": "o-only", "final_state": False, "dtype": "float16"},
    "a pack with empty sequences and a tail": {"seqlens": (0, 17, 0, 3), "tail": 2, "gate_in_kernel": True},
    "a pack in bfloat16": {"seqlens": (2, 0, 18), "tail": 1, "dtype": "bfloat16", "layout": "v_first"},
    "heads in groups": {"H": 2, "HV": 6, "B": 2, "T": 5, "K": 5, "V": 11},
    "one head size": {"K": 1, "V": 1, "T": 5, "normalize": False},
    "gates at -1e4 beside gates at 0": {"gates": "mixed"},
    "every gate at -1e4": {"gates": "all_extreme"},
    "gates that overflow": {"gates": "overflow", "gate_in_kernel": True},
    "mixed dtypes": {"dtype": "bfloat16", "v_dtype": "float32", "gate_dtype": "float16", "state_dtype": "bfloat16"},
}


@pytest.mark.parametrize("about", AGAINST_THE_ORACLE)
@FORMS
def test_gradients_agree_with_the_oracle(form, about):
    check = execute(CONTEXT, probes()["gradients"], small(form, **AGAINST_THE_ORACLE[about]))
    assert check.status is Status.PASS, f"{check.message} {check.location} {check.reason}"
    assert check.ratio is not None and check.ratio > 0


@pytest.mark.parametrize("sizes", [{"T": 0}, {"B": 0}, {"seqlens": (), "tail": 2}, {"seqlens": (0, 0), "tail": 2}])
@FORMS
def test_without_tokens_only_the_state_has_a_gradient(form, sizes):
    case = small(form, **IN_KERNEL, **sizes)
    call, do, d_final = drawn(case)
    found, o = pulled_back(case, call, do, d_final)
    assert torch.equal(found["initial_state"], d_final)
    for name in ("q", "k", "v", "g", "beta", "A_log", "dt_bias"):
        assert found[name].shape == getattr(call, name).shape
        assert not bool(found[name].any()), name
    assert not bool(o.any())


@FORMS
def test_a_tail_of_nan_reaches_no_gradient(form):
    case = small(form, seqlens=(0, 17, 0, 1), tail=3, **IN_KERNEL)
    call, do, d_final = drawn(case)
    assert bool(call.q[:, 18:].isnan().all() and do[:, 18:].isnan().all())
    found, _ = pulled_back(case, call, do, d_final)
    for name, x in found.items():
        assert bool(x.isfinite().all()) and bool(x.any()), name
        if name in ("q", "k", "v", "g", "beta"):
            assert not bool(x[:, 18:].any()), name


@pytest.mark.parametrize("sizes", [{}, {"seqlens": (2, 0, 16), "tail": 3}], ids=["dense", "pack"])
@FORMS
def test_no_gradient_depends_on_new_memory(form, sizes):
    case = small(form, **IN_KERNEL, **sizes)
    found = []
    for content in ("zeros", "poison"):
        with forced_init(content):
            found.append(pulled_back(case, *drawn(case))[0])
    assert_same_bits(*found)


def spread(x: torch.Tensor) -> torch.Tensor:
    """Return a view of the same values in which no dimension is contiguous."""
    wide = x.new_full((*x.shape[:-1], x.shape[-1] + 1, 2), float("nan"))
    view = wide[..., :-1, 1]
    return view.copy_(x)


def shifted(x: torch.Tensor) -> torch.Tensor:
    """Return a view of the same values that starts one element into its memory."""
    view = x.new_full((x.numel() + 1,), float("nan"))[1:].view(x.shape)
    assert view.data_ptr() % 16
    return view.copy_(x)


@pytest.mark.parametrize("moved", [spread, shifted])
@FORMS
def test_where_inputs_lie_does_not_matter(form, moved):
    case = small(form, layout="v_first", **IN_KERNEL)
    call, do, d_final = drawn(case)
    want, o = pulled_back(case, call, do, d_final)
    elsewhere = call.with_(**{name: moved(getattr(call, name)) for name in GRADIENT_INPUTS})
    found, again = pulled_back(case, elsewhere, moved(do), moved(d_final))
    assert_same_bits(found | {"o": again}, want | {"o": o})


@FORMS
def test_an_expanded_cotangent_is_read_rightly(form):
    case = small(form)
    call, do, d_final = drawn(case)
    one, state = do[..., :1], d_final[..., :1]
    want, _ = pulled_back(case, call, one.expand_as(do).clone(), state.expand_as(d_final).clone())
    assert_same_bits(pulled_back(case, call, one.expand_as(do), state.expand_as(d_final))[0], want)


def test_aligned_copies_only_what_does_not_lie_on_16_bytes():
    x = torch.arange(32.0, device=DEVICE)
    assert aligned(x) is x
    assert aligned(x[4:]).data_ptr() == x[4:].data_ptr()
    for view in (x[1:], x[::2], x.view(4, 8).T):
        copy = aligned(view)
        assert copy.is_contiguous() and copy.data_ptr() % 16 == 0
        assert torch.equal(copy, view)


@FORMS
def test_the_gradient_of_a_strength_near_1_keeps_its_digits(form):
    """sigmoid'(6) = 0.0025: one minus a sigmoid in fp32 would be off by 1e-5 of it."""
    case = small(form, beta_sigmoid=True)
    call, do, d_final = drawn(case)
    call = call.with_(beta=torch.full_like(call.beta, 6.0))
    got = pulled_back(case, call, do, d_final)[0]["beta"].double().cpu()
    wide = {name: getattr(call, name).double().cpu() for name in ("q", "k", "v", "g", "beta", "initial_state")}
    beta = wide["beta"].requires_grad_()
    o, final = oracle.sequence(call.with_(**wide))
    (want,) = torch.autograd.grad([o, final], [beta], [do.double().cpu(), d_final.double().cpu()])
    assert float((got - want).norm() / want.norm()) < 2e-6
