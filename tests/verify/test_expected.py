"""Expectations: the rounding model agrees with the oracle without rounding, and bounds are what they say."""

from dataclasses import replace

import pytest
import torch

from deltaproof.ops.registry import operator
from deltaproof.verify.case import Case
from deltaproof.verify.expected import Expected, Reference
from deltaproof.verify.inputs import build
from deltaproof.verify.noise import Rounding
from deltaproof.verify.observation import HarnessError, compare, same_bits

REFERENCE = Reference(operator("gated_delta_rule"))
KDA = Reference(operator("kda"))


@pytest.mark.parametrize("reference", [REFERENCE, KDA], ids=lambda reference: reference.operator.name)
@pytest.mark.parametrize("chunk", [1, 16, 64])
def test_the_rounding_model_without_rounding_is_the_oracle(chunk, reference):
    per_channel = reference.operator.gate_per_channel
    call = build(Case("chunk", T=70, gates="mixed", gate_in_kernel=False), 0, gate_per_channel=per_channel)
    # the model clamps log gates at -64, which is below float64's rounding of what they leave
    quiet = Rounding(0.0, 0.0, seed=0)
    dense = replace(
        call,
        **{name: getattr(call, name).double() for name in ("q", "k", "v", "g", "beta", "initial_state")},
    )
    q, k, v, g, beta = reference.noise.operands(dense, quiet)
    o, states = reference.noise.run(
        q, k, v, g, beta, dense.initial_state, scale=call.options.scale, chunk=chunk, rounding=quiet
    )
    want, final = reference.oracle.sequence(call)
    assert float((o - want).abs().max()) < 1e-12
    assert float((states[-1] - final).abs().max()) < 1e-12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bounds_follow_the_dtype(dtype):
    call = build(Case("chunk", T=70, dtype=dtype), 0)
    expected = REFERENCE.sequence(call, chunked=True)["o"]
    relative = float((expected.bound / expected.want.norm(dim=-1)).median())
    unit = 2.0**-24 if dtype == "float32" else 2.0**-8
    assert unit < relative < 100 * unit


@pytest.mark.parametrize("reference", [REFERENCE, KDA], ids=lambda reference: reference.operator.name)
def test_the_length_of_a_key_is_rounded_as_one_number(reference):
    """Reflections by one key (equal keys, strength 2) carry its error from token to token."""
    case = Case("recurrent", T=16, B=1, H=4, HV=4, K=16, V=8, keys="identical", betas="two", gates="zero")
    call = build(case, 0, gate_per_channel=reference.operator.gate_per_channel)
    exact, _ = reference.oracle.sequence(call)
    # an ulp and a half, half of one each for a sum, a root and a division
    plain = replace(call.options, normalize_qk=False)
    moved, _ = reference.oracle.sequence(
        call.with_(k=_unit(call.k) * (1 + 3 * 2.0**-24), q=_unit(call.q), options=plain)
    )
    bound = reference.sequence(call, chunked=False)["o"].bound
    assert float(((moved - exact).norm(dim=-1) / bound).max()) < 1


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x.double() / (x.double().pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()


def test_bounds_grow_with_the_cumulative_gate():
    def width(gates):
        call = build(Case("chunk", T=64, B=1, gates=gates), 0)
        expected = REFERENCE.sequence(call, chunked=True)["o"]
        return float((expected.bound / expected.want.norm(dim=-1)).median())

    assert width("mixed") > 4 * width("zero")


def test_tokens_in_no_sequence_must_be_exactly_zero():
    call = build(Case("chunk", seqlens=(5, 4), tail=3), 0)
    expected = REFERENCE.sequence(call, chunked=True)["o"]
    assert bool((expected.bound[:, 9:] == 0).all())
    assert bool((expected.bound[:, :9] > 0).all())
    assert bool((expected.want[:, 9:] == 0).all())


def small(bound=0.5):
    want = torch.zeros(1, 2, 1, 3, dtype=torch.float64)
    return Expected("o", want, torch.full((1, 2, 1), bound, dtype=torch.float64), torch.float32)


class TestCompare:
    def test_names_the_worst_place_with_value_and_expectation(self):
        got = torch.zeros(1, 2, 1, 3)
        got[0, 1, 0, 2] = 2.0
        seen = compare(got, small(), chunk_size=1)
        assert not seen.ok
        assert (seen.location.token, seen.location.head, seen.location.chunk) == (1, 0, 1)
        assert seen.location.element == (0, 1, 0, 2)
        assert (seen.value, seen.expected, seen.ratio) == ("2", "0", 4.0)

    def test_passes_at_the_bound_and_not_above(self):
        got = torch.zeros(1, 2, 1, 3)
        got[0, 0, 0, 0] = 0.5
        assert compare(got, small()).ok
        got[0, 0, 0, 0] = 0.5001
        assert not compare(got, small()).ok

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_what_is_not_finite_never_passes(self, value):
        got = torch.zeros(1, 2, 1, 3)
        got[0, 0, 0, 1] = value
        assert not compare(got, small(bound=1e30)).ok

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("field", ["want", "bound"])
    def test_an_expectation_that_is_not_finite_is_an_error_of_the_harness(self, field, value):
        expected = small()
        getattr(expected, field).view(-1)[0] = value
        with pytest.raises(HarnessError, match="not finite"):
            compare(torch.zeros(1, 2, 1, 3), expected)

    def test_shape_and_dtype_are_part_of_the_promise(self):
        assert compare(torch.zeros(1, 2, 1, 4), small()).clause == "S1"
        assert compare(torch.zeros(1, 2, 1, 3, dtype=torch.float64), small()).clause == "S3"

    def test_a_row_without_a_bound_must_be_exact(self):
        got = torch.zeros(1, 2, 1, 3)
        assert compare(got, small(bound=0.0)).ok
        got[0, 0, 0, 0] = 1e-30
        assert not compare(got, small(bound=0.0)).ok


class TestSameBits:
    def test_tells_negative_zero_and_nan_payloads_apart(self):
        zero, nan = torch.zeros(3), torch.tensor([float("nan")])
        assert same_bits("x", zero, zero.clone(), "I1", None, "again").ok
        assert not same_bits("x", -zero, zero, "I1", None, "again").ok
        assert same_bits("x", nan, nan.clone(), "I1", None, "again").ok

    def test_names_the_first_difference(self):
        got = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
        seen = same_bits("o", got, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "I1", None, "a second run")
        assert not seen.ok
        assert seen.location.element == (1, 1)
        assert (seen.value, seen.expected) == ("5", "4")
