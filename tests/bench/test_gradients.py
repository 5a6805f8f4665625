"""Which inputs have gradients, and that the reference may take some heads at a time."""

from __future__ import annotations

import pytest
import torch

from deltaproof.backends.registry import load
from deltaproof.bench import gradients
from deltaproof.bench.gradients import by_heads, sum_scales, summed, with_gradients, with_leaves
from deltaproof.bench.inputs import output_gradients, sequence_sets
from deltaproof.bench.workload import SequenceWorkload

PACK = SequenceWorkload(heads=(3, 6), lengths=(20, 0, 13), K=16, V=8, layout="v_first")


def drawn(operator):
    return sequence_sets(operator, PACK, torch.float32, "cpu", 0)[0]


def test_every_input_that_is_there_and_has_a_gradient_gets_one():
    assert with_gradients(drawn("gated_delta_rule")) == ("q", "k", "v", "g", "beta", "initial_state")
    assert with_gradients(drawn("kda")) == ("q", "k", "v", "g", "beta", "A_log", "dt_bias", "initial_state")


@pytest.mark.parametrize("operator", ["gated_delta_rule", "kda"])
@pytest.mark.parametrize(("at_once", "parts"), [(1, 3), (2, 2), (3, 1)])
def test_heads_one_after_another_give_what_all_give_at_once(operator, at_once, parts, monkeypatch):
    call = drawn(operator)
    chunk, asked = load("torch", operator).chunk, []
    leaves = with_leaves(call)
    o, final = chunk(leaves)
    back = output_gradients(call)
    inputs = [getattr(leaves, name) for name in with_gradients(leaves)]
    whole = dict(zip(with_gradients(leaves), torch.autograd.grad((o, final), inputs, back), strict=True))
    monkeypatch.setattr(gradients, "MOST_TOKEN_HEADS", at_once * 33 * 2)

    def counted(part):
        asked.append(part.v.shape[2])
        return chunk(part)

    found = by_heads(counted, call, back)
    assert len(asked) == parts and sum(asked) == 6
    for name, want in {"o": o, "final_state": final, **{f"d{name}": x for name, x in whole.items()}}.items():
        torch.testing.assert_close(
            found[name], want, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert not found[name].requires_grad


def test_the_gradients_of_a_gates_parameters_are_the_sums_whose_terms_are_asked_about():
    call = drawn("kda")
    want = by_heads(load("torch", "kda").chunk, call, output_gradients(call))
    terms = want["dg"] * (call.g + call.dt_bias)
    torch.testing.assert_close(terms.sum((0, 1, 3)), want["dA_log"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(want["dg"].sum((0, 1)), want["ddt_bias"], rtol=1e-4, atol=1e-5)
    assert summed(call) == {"dA_log": 33 * 16, "ddt_bias": 33}
    scales = sum_scales(call, want)
    assert scales["dA_log"] == pytest.approx(float(terms.square().sum((0, 1, 3)).mean().sqrt()), rel=1e-4)
    assert scales["ddt_bias"] == pytest.approx(float(want["dg"].square().sum((0, 1)).mean().sqrt()), rel=1e-4)


def test_without_such_parameters_nothing_is_a_sum_over_all_tokens():
    call = drawn("gated_delta_rule")
    assert summed(call) == {} == sum_scales(call, {})
