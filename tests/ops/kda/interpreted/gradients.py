"""The Triton backward of Kimi delta attention: gradients against the oracle, and what no gradient may depend on.

``test_triton_interpreted.py`` runs this file: on the CPU in Triton's interpreter, on a GPU as it is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deltaproof.ops.common import triton_recurrent_backward
from deltaproof.ops.common.allocation import forced_init
from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.triton_language import INTERPRETED
from deltaproof.ops.kda import oracle
from deltaproof.ops.kda.triton_backend import TritonBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.expected import GRADIENT_INPUTS
from deltaproof.verify.probe import Context, probes
from deltaproof.verify.probes._runs import drawn_cotangents
from deltaproof.verify.target import Target

DEVICE = "cpu" if INTERPRETED else "cuda"
CONTEXT = Context(Target(TritonBackend(), operator("kda"), "test", face=False), seed=0, device=DEVICE)
FORMS = pytest.mark.parametrize("form", ["chunk", "recurrent"])
IN_KERNEL: dict[str, Any] = {"gate_in_kernel": True, "beta_sigmoid": True, "neg_eigval": True}
BOUNDED: dict[str, Any] = {"gate_in_kernel": True, "lower_bound": -5.0}
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
    "log gates": {},
    "both layouts and all options": {"layout": "v_first", **IN_KERNEL},
    "a lower bound": {**BOUNDED},
    "a lower bound, without A_log": {**BOUNDED, "A_log": False, "layout": "v_first"},
    "a lower bound in bfloat16": {**BOUNDED, "safe_gate": True, "dtype": "bfloat16", "dt_bias": False},
    "a lower bound below what one product takes": {**BOUNDED, "lower_bound": -40.0, "dtype": "bfloat16"},
    "without A_log": {"gate_in_kernel": True, "A_log": False},
    "without A_log and dt_bias": {"gate_in_kernel": True, "A_log": False, "dt_bias": False},
    "the final state alone": {"label": "state-only"},
    "the output alone": {"label": "o-only", "normalize": False},
    "no initial state": {"initial_state": False},
    "no final state": {"label": "o-only", "final_state": False, "dtype": "float16"},
    "a pack with empty sequences and a tail": {"seqlens": (0, 17, 0, 3), "tail": 2, "gate_in_kernel": True},
    "a pack in bfloat16": {"seqlens": (2, 0, 18), "tail": 1, "dtype": "bfloat16", "layout": "v_first"},
    "heads in groups": {"H": 2, "HV": 6, "B": 2, "T": 5, "K": 5, "V": 11},
    "a chunk of 32": {"T": 35, "chunk_size": 32, "HV": 1, "gates": "slow"},
    "one head size": {"K": 1, "V": 1, "T": 5, "normalize": False},
    "gates at -1e4 beside gates at 0": {"gates": "mixed"},
    "gates at -1e4 and at 0 in turn, in bfloat16": {"gates": "alternating", "dtype": "bfloat16"},
    "gates at -40, in bfloat16": {"gates": "forties", "dtype": "bfloat16"},
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


@pytest.mark.parametrize("about", [IN_KERNEL, BOUNDED], ids=["softplus", "lower bound"])
@FORMS
def test_every_parameter_of_the_gate_has_a_gradient_of_its_own_shape(form, about):
    case = small(form, **about)
    found, _ = pulled_back(case, *drawn(case))
    assert found["g"].shape == (1, case.T, 2, 9)
    assert found["A_log"].shape == (2,) and found["dt_bias"].shape == (2, 9)
    assert all(bool((found[name] != 0).all()) for name in ("g", "A_log", "dt_bias"))


@pytest.mark.parametrize(("lower_bound", "at"), [(None, -10.0), (-5.0, 10.0), (-5.0, -10.0)])
@FORMS
def test_the_gradient_of_a_gate_at_the_end_of_its_sigmoid_keeps_its_digits(form, lower_bound, at):
    """sigmoid'(10) = 5e-5: one minus a sigmoid in fp32 would be off by 5e-4 of it."""
    case = small(form, gate_in_kernel=True, A_log=False, dt_bias=False, lower_bound=lower_bound)
    call, do, d_final = drawn(case)
    call = call.with_(g=torch.full_like(call.g, at))
    got = pulled_back(case, call, do, d_final)[0]["g"].double().cpu()
    wide = {name: getattr(call, name).double().cpu() for name in ("q", "k", "v", "g", "beta", "initial_state")}
    g = wide["g"].requires_grad_()
    o, final = oracle.sequence(call.with_(**wide))
    (want,) = torch.autograd.grad([o, final], [g], [do.double().cpu(), d_final.double().cpu()])
    assert float((got - want).norm() / want.norm()) < 5e-5
