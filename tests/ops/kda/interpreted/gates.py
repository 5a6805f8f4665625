"""Gates far below 0 in Triton, where a chunk's rows take two ways, and gates with a bound, where they take one.

``test_triton_interpreted.py`` runs this file: on the CPU in Triton's interpreter, on a GPU as it is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.triton_language import INTERPRETED
from deltaproof.ops.kda.triton_backend import TritonBackend
from deltaproof.ops.kda.triton_chunk import _ways, cut, scores
from deltaproof.ops.registry import operator
from deltaproof.verify.expected import GRADIENT_INPUTS, Expected, Reference
from deltaproof.verify.observation import compare
from tests.ops.gated_delta_rule.cases import V_FIRST, normal
from tests.ops.kda.cases import sequence_call

DEVICE = "cpu" if INTERPRETED else "cuda"
T, FIRST_DEEP = 37, 22
SIZES: dict[str, Any] = {"B": 1, "T": T, "H": 1, "HV": 2, "K": 9, "V": 5}
CHUNKS = pytest.mark.parametrize("chunk_size", [16, 32, 64])
Results = dict[str, torch.Tensor]


def low(call: SequenceCall) -> SequenceCall:
    """Return a call with operands in bfloat16, on the device."""
    call = call.with_(**{name: getattr(call, name).bfloat16() for name in ("q", "k", "v")})
    return call.with_(**{name: x.to(DEVICE) for name, x in vars(call).items() if isinstance(x, torch.Tensor)})


def with_deep_rows(chunk_size: int, *, depth: float = -60.0, **changes: Any) -> SequenceCall:
    """Return a call whose gates are 0, but ``depth`` in some channels of rows 20, 22 to 25 and 35.

    Row 20 is not deep yet: one such gate a channel is within the reach of a product. Row ``FIRST_DEEP`` is the first.
    """
    call = sequence_call(4, chunk_size=chunk_size, **SIZES, **changes)
    g = torch.zeros_like(call.g)
    for row in (20, 22, 23, 24, 25, 35):
        g[:, row, :, row % 2 :: 2] = depth
    return low(call.with_(g=g))


def pulled_back(call: SequenceCall, cotangents: Results) -> Results:
    """Return what the form chunk gives, gradients included."""
    leaves = {name: getattr(call, name) for name in GRADIENT_INPUTS if getattr(call, name) is not None}
    leaves = {name: x.detach().clone().requires_grad_() for name, x in leaves.items()}
    o, final = TritonBackend().chunk(call.with_(**leaves))
    assert final is not None
    found = torch.autograd.grad([o, final], list(leaves.values()), [cotangents["o"], cotangents["final_state"]])
    return {"o": o, "final_state": final} | {f"d_{name}": x for name, x in zip(leaves, found, strict=True)}


def arriving(call: SequenceCall) -> Results:
    assert call.initial_state is not None
    shapes = {"o": call.v, "final_state": call.initial_state}
    return {name: normal(8, *x.shape).to(DEVICE, x.dtype) for name, x in shapes.items()}


def expected(call: SequenceCall, cotangents: Results) -> dict[str, Expected]:
    """Return what the form chunk must give: the oracle's values and the bound of clause N2."""
    clean = call.with_(**{name: x.cpu() for name, x in vars(call).items() if isinstance(x, torch.Tensor)})
    reference = Reference(operator("kda"))
    gradients = reference.gradients(clean, *(x.cpu() for x in cotangents.values()), chunked=True)
    return reference.sequence(clean, chunked=True) | {f"d_{name}": x for name, x in gradients.items()}


def assert_within_the_bound(call: SequenceCall, got: Results, want: dict[str, Expected]) -> None:
    assert got.keys() == want.keys()
    for name, x in want.items():
        observation = compare(got[name], x, chunk_size=call.options.chunk_size)
        assert observation.ok, f"{name}: {observation.message}"


def deep_chunks(call: SequenceCall) -> list[int]:
    """Return which chunks of head 0 have rows that the second way is for."""
    chunks, table = cut(call)
    deep = scores(chunks, table, backward=False).deep[:, 0]
    return [place for place, found in enumerate(deep.tolist()) if found]


@CHUNKS
def test_rows_with_gates_far_below_0_are_within_the_bound(chunk_size):
    call = with_deep_rows(chunk_size)
    assert deep_chunks(call) == [FIRST_DEEP // chunk_size]
    cotangents = arriving(call)
    assert_within_the_bound(call, pulled_back(call, cotangents), expected(call, cotangents))


@CHUNKS
def test_a_pack_whose_sequences_take_either_way_is_within_the_bound(chunk_size):
    call = with_deep_rows(chunk_size, cu_seqlens=[0, 3, 3, 19, 36], layout=V_FIRST)
    assert deep_chunks(call)
    cotangents = arriving(call)
    assert_within_the_bound(call, pulled_back(call, cotangents), expected(call, cotangents))


@CHUNKS
@pytest.mark.parametrize("later", [-60.0, -1e4])
def test_rows_before_the_first_deep_one_do_not_know_of_it(chunk_size, later):
    """The second way is chosen row by row: a whole chunk that changed its way would change bits of earlier rows."""
    call = with_deep_rows(chunk_size, depth=later)
    moderate = call.with_(g=call.g.clone())
    moderate.g[:, FIRST_DEEP:] = -0.1
    moderate.g[:, 20] = call.g[:, 20] = -0.1
    assert deep_chunks(call) and not deep_chunks(moderate)
    o, want = (TritonBackend().chunk(each)[0] for each in (call, moderate))
    assert torch.equal(o[:, :FIRST_DEEP], want[:, :FIRST_DEEP])
    assert not torch.equal(o[:, FIRST_DEEP:], want[:, FIRST_DEEP:])


@CHUNKS
def test_moderate_gates_take_one_way_alone(chunk_size):
    """16 gates of -5 are the most that one product takes."""
    call = with_deep_rows(chunk_size)
    assert deep_chunks(call.with_(g=torch.full_like(call.g, -4.999))) == []
    assert deep_chunks(call.with_(g=torch.full_like(call.g, -5.2))) != []


@pytest.mark.parametrize(
    ("dtype", "options", "halved"),
    [
        (torch.bfloat16, {"gate_in_kernel": True, "lower_bound": -5.0}, [False]),
        (torch.bfloat16, {"gate_in_kernel": True, "lower_bound": -5.0, "safe_gate": True}, [False]),
        (torch.bfloat16, {"gate_in_kernel": True, "lower_bound": -5.1}, [False, True]),
        (torch.bfloat16, {"gate_in_kernel": True}, [False, True]),
        (torch.bfloat16, {}, [False, True]),
        (torch.float16, {"gate_in_kernel": True, "lower_bound": -5.0}, [True]),
        (torch.float32, {}, [True]),
    ],
)
def test_which_ways_a_call_takes_follows_from_its_dtype_and_its_bound(dtype, options, halved):
    call = sequence_call(5, chunk_size=16, **SIZES, **options)
    call = low(call).with_(**{name: getattr(call, name).to(DEVICE, dtype) for name in ("q", "k", "v")})
    assert [way["HALVED"] for way in _ways(cut(call)[0])] == halved


def bounded(chunk_size: int, **changes: Any) -> tuple[SequenceCall, SequenceCall]:
    """Return a call with a lower bound of -5, some gates close to it, and one that is given the same gates."""
    options = {"gate_in_kernel": True, "lower_bound": -5.0, "safe_gate": True} | changes
    call = sequence_call(6, chunk_size=chunk_size, **SIZES, **options)
    raw = call.g * 3
    raw[:, ::5] = 40.0
    call = low(call.with_(g=raw))
    x = call.g if call.dt_bias is None else call.g + call.dt_bias
    x = x if call.A_log is None else x * call.A_log.exp()[:, None]
    given = sequence_call(6, chunk_size=chunk_size, **SIZES)
    plain = call.with_(g=-5.0 * x.sigmoid(), A_log=None, dt_bias=None, options=given.options)
    assert float(plain.g.min()) < -4.999
    return call, plain


@CHUNKS
@pytest.mark.parametrize("changes", [{}, {"A_log": False, "dt_bias": False}], ids=["all", "no-parameters"])
def test_gates_with_a_bound_and_the_same_gates_as_numbers_agree(chunk_size, changes):
    call, plain = bounded(chunk_size, **changes)
    assert len(_ways(cut(call)[0])) == 1 and len(_ways(cut(plain)[0])) == 2
    cotangents = arriving(call)
    want = expected(plain, cotangents)
    got, other = pulled_back(call, cotangents), pulled_back(plain, cotangents)
    assert_within_the_bound(plain, other, want)
    same = want.keys() - {"d_g"}
    assert_within_the_bound(call, {name: got[name] for name in same}, {name: want[name] for name in same})


@CHUNKS
def test_a_promise_changes_no_bit(chunk_size):
    promised, _ = bounded(chunk_size)
    free, _ = bounded(chunk_size, safe_gate=False)
    cotangents = arriving(free)
    got, want = pulled_back(promised, cotangents), pulled_back(free, cotangents)
    assert all(torch.equal(got[name], x) for name, x in want.items())
