"""Shared code that an operator never runs is left out of its campaign, and of no other's."""

from __future__ import annotations

import pytest

from deltaproof.verify.source_mutants.generate import generate
from deltaproof.verify.source_mutants.source import Source, sources
from deltaproof.verify.source_mutants.untaken import UNTAKEN, Untaken, stale, taken

OPERATORS = ("gated_delta_rule", "kda")
TEXT = "@triton.jit\ndef kernel(x, y, n, K: tl.constexpr):\n    tl.store(y + n * K, tl.load(x + n), mask=n < K)\n"
SMALL = generate({"f": Source(TEXT, "common/triton_f")})
SHARED = generate(sources())


def test_a_branch_that_an_operator_never_takes_is_left_out_for_that_operator_alone() -> None:
    gates = [item for item in SHARED if item.place == "common/triton_token:gate_at"]
    by_channel = [item for item in gates if "(dt_bias + head * K" in item.statement]
    by_head = [item for item in gates if "(dt_bias + head)" in item.statement]
    assert by_channel and by_head
    assert taken("gated_delta_rule", [*by_channel, *by_head]) == by_head
    assert taken("kda", [*by_channel, *by_head]) == by_channel
    assert taken("causal_conv1d", [*by_channel, *by_head]) == [*by_channel, *by_head]


def test_a_function_that_an_operator_never_calls_is_left_out_whole() -> None:
    whole = Untaken("kda", function="common/triton_f:kernel")
    assert all(whole.meets(mutant) for mutant in SMALL)
    assert not any(Untaken("kda", function="common/triton_f:other").meets(mutant) for mutant in SMALL)
    assert str(whole) == "kda: common/triton_f:kernel"
    assert str(Untaken("kda", condition="PER_CHANNEL", holds=True)) == "kda: PER_CHANNEL is True"


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_entry_meets_a_mutant(operator: str) -> None:
    assert {entry.operator for entry in UNTAKEN} == set(OPERATORS)
    assert stale(operator, generate(sources(operator))) == []


def test_an_entry_that_meets_no_mutant_is_stale() -> None:
    gone = Untaken("kda", function="common/triton_f:gone")
    assert stale("kda", SMALL, [gone]) == ["kda: common/triton_f:gone: no such mutant"]
    assert stale("gated_delta_rule", SMALL, [gone]) == []


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_campaign_keeps_most_of_what_there_is(operator: str) -> None:
    everything = generate(sources(operator))
    assert 0.8 * len(everything) < len(taken(operator, everything)) < len(everything)
