"""The check before the timing: an ordinary kernel passes, and what is wrong does not."""

from __future__ import annotations

import math

import pytest
import torch

from deltaproof.backends.registry import load
from deltaproof.bench.check import SITES, chunked, chunked_backward, compare, describe, single_token
from deltaproof.bench.gradients import leaves, named, sum_scales, summed, with_leaves
from deltaproof.bench.inputs import output_gradients, sequence_sets
from deltaproof.bench.sets import SETS
from deltaproof.bench.verbs import VERBS
from deltaproof.bench.workload import SequenceWorkload
from deltaproof.verify.noise import gated_delta_rule, kda

BF16 = torch.bfloat16
RULE = "gated_delta_rule"
ROUNDING_MODELS = {"gated_delta_rule": gated_delta_rule.same_dtype, "kda": kda.same_dtype}


def test_every_operator_with_a_bench_has_a_rounding_model_here():
    assert set(ROUNDING_MODELS) == set(SETS) == set(SITES)


@pytest.mark.parametrize("operator", ROUNDING_MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "workload",
    [
        SequenceWorkload(heads=(1, 2), lengths=(256,)),
        SequenceWorkload(heads=(2, 2), lengths=(30, 100), K=32, V=16, layout="v_first"),
    ],
    ids=lambda workload: workload.name,
)
def test_a_kernel_that_rounds_operands_is_within_the_bound_and_the_bound_not_far_above_it(operator, dtype, workload):
    call = sequence_sets(operator, workload, dtype, "cpu", 0)[0]
    want = VERBS["backward"](operator).reference(load("torch", operator), call)
    given = with_leaves(call)
    # fp32 operands are not rounded: there it is the order of sums that differs from the reference's
    o, final = ROUNDING_MODELS[operator](given, chunked=dtype != torch.float32)
    gradients = named(given, torch.autograd.grad((o.to(dtype), final), leaves(given), output_gradients(call)))
    outputs = {"o": o.to(dtype), "final_state": final}
    errors = [compare(name, x, want[name], x.dtype, chunked(operator, dtype)) for name, x in outputs.items()]
    terms, least = summed(call), sum_scales(call, want)
    for name, x in gradients.items():
        rounding = chunked_backward(operator, dtype, terms.get(name, 0))
        errors.append(compare(name, x, want[name], x.dtype, rounding, least.get(name, 0.0)))
    assert set(want) == {error.output for error in errors}
    assert not describe(errors)
    for error in errors:
        assert 2 < error.rms_bound / error.relative_rms < 64, error


@pytest.fixture
def want():
    return torch.randn(4, 50, 6, 64, generator=torch.Generator().manual_seed(0))


def broken(name, x):
    if name == "scaled":
        return x * 1.1
    if name == "one row":
        x[2, 17, 3] = x[2, 18, 3]
    if name == "one row off by a half":
        x[2, 17, 3] *= 1.5
    if name == "NaN":
        x[1, 2, 3, 4] = math.nan
    if name == "infinity":
        x[1, 2, 3, 4] = math.inf
    if name == "zeros":
        x.zero_()
    if name == "neighbour's heads":
        return x.roll(1, 2)
    return x


@pytest.mark.parametrize(
    "fault", ["scaled", "one row", "one row off by a half", "NaN", "infinity", "zeros", "neighbour's heads"]
)
def test_what_is_wrong_is_beyond_the_bound(want, fault):
    stored = broken(fault, want.to(BF16))
    error = compare("o", stored, want, BF16, chunked(RULE, BF16))
    assert not error.ok
    assert "o: relative RMS error" in describe([error])


def test_rounding_alone_is_within_the_bound_and_the_worst_place_is_named(want):
    error = compare("o", want.to(BF16), want, BF16, single_token())
    assert error.ok and describe([error]) == ""
    assert 0 < error.relative_rms < 2.0**-8
    off = want.to(BF16)
    off[1, 2, 3, 4] += 3
    error = compare("o", off, want, BF16, single_token())
    assert error.where == [1, 2, 3, 4] and error.largest == pytest.approx(3, abs=0.05) and not error.ok


def test_float32_is_held_to_float32(want):
    assert not compare("o", want.to(BF16).float(), want, torch.float32, single_token()).ok
    assert not compare("o", want.to(BF16).float(), want, torch.float32, chunked(RULE, torch.float32)).ok
    assert compare("o", want.clone(), want, torch.float32, single_token()).ok


def test_a_sum_whose_terms_cancel_is_held_to_its_terms():
    want = torch.tensor([0.1, -0.2])
    got = want + 0.01
    assert not compare("dA_log", got, want, torch.float32, chunked(RULE, BF16)).ok
    error = compare("dA_log", got, want, torch.float32, chunked(RULE, BF16), least=5.0)
    assert error.ok and error.relative_rms == pytest.approx(0.01 / 5, rel=1e-3)
    assert not compare("dA_log", got + 1, want, torch.float32, chunked(RULE, BF16), least=5.0).ok
    # a sum that is larger than its terms is held to itself
    large = compare("dA_log", 100 * got, 100 * want, torch.float32, chunked(RULE, BF16), least=5.0)
    assert large.relative_rms == pytest.approx(1 / (100 * math.sqrt(0.025)), rel=1e-3)


def test_a_sum_over_tokens_may_round_once_a_partial_sum():
    plain, long = chunked_backward(RULE, torch.float32), chunked_backward(RULE, torch.float32, 1 << 20)
    assert long.rms_bound(torch.float32) == pytest.approx(4 * 2.0**-24 * 2**10, rel=0.01)
    assert plain.rms_bound(torch.float32) < long.rms_bound(torch.float32) / 20


def test_another_shape_or_dtype_is_said_and_not_compared(want):
    error = compare("o", want[:3], want, torch.float32, single_token())
    assert not error.ok and "expected shape (4, 50, 6, 64), got (3, 50, 6, 64)" in describe([error])
    error = compare("o", want, want, BF16, single_token())
    assert not error.ok and describe([error]) == "o: expected bfloat16, got float32"


def test_where_nothing_may_change_nothing_may_change():
    zero = torch.zeros(1)
    assert compare("other_slots", torch.zeros(1), zero, torch.float32, single_token()).ok
    assert not compare("other_slots", torch.ones(1), zero, torch.float32, single_token()).ok


def test_an_empty_output_is_right(want):
    assert compare("o", want[:0].to(BF16), want[:0], BF16, chunked(RULE, BF16)).ok
