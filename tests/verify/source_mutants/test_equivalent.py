"""The reviewed list meets mutants by their text, and says so when it no longer holds."""

from __future__ import annotations

from deltaproof.ops.registry import operators
from deltaproof.verify.source_mutants.equivalent import EQUIVALENT, Equivalent, reason_of, stale
from deltaproof.verify.source_mutants.generate import generate
from deltaproof.verify.source_mutants.operators import OPERATORS
from deltaproof.verify.source_mutants.source import Source, sources

TEXT = "@triton.jit\ndef kernel(x, y, n, K: tl.constexpr):\n    tl.store(y + n * K, tl.load(x + n), mask=n < K)\n"
EVERY = generate({"f": Source(TEXT, "common/triton_f")})
SHIFTED = next(mutant for mutant in EVERY if mutant.operator == "shift-bound")


def entry(**changes: str) -> Equivalent:
    base = {"place": "common/triton_f:kernel", "operator": "shift-bound", "before": "n < K", "reason": "rows end there"}
    return Equivalent(**{**base, **changes})


def test_an_entry_gives_its_mutant_a_reason_and_no_other() -> None:
    given = {mutant.id: reason_of(mutant, "cpu", [entry()]) for mutant in EVERY}
    assert {name for name, reason in given.items() if reason} == {SHIFTED.id}
    assert given[SHIFTED.id] == "rows end there"


def test_what_is_left_out_meets_anything() -> None:
    whole = Equivalent("common/triton_f:kernel", "never run")
    assert all(reason_of(mutant, "cpu", [whole]) == "never run" for mutant in EVERY)
    assert not any(reason_of(mutant, "cpu", [Equivalent("common/triton_f:other", "never run")]) for mutant in EVERY)
    assert str(whole) == "common/triton_f:kernel"


def test_what_the_mutant_puts_there_can_be_asked_for() -> None:
    assert reason_of(SHIFTED, "cpu", [entry(after="n <= K")])
    assert not reason_of(SHIFTED, "cpu", [entry(after="n > K")])


def test_the_same_text_in_another_statement_is_another_mutant() -> None:
    text = (
        "@triton.jit\ndef kernel(x, n, K):\n    if n < K:\n        y = tl.load(x, mask=n < K)\n        tl.store(x, y)\n"
    )
    bounds = [item for item in generate({"f": Source(text, "common/triton_f")}) if item.operator == "shift-bound"]
    assert [item.statement for item in bounds] == ["if n < K:", "y = tl.load(x, mask=n < K)"]
    given = [bool(reason_of(item, "cpu", [entry(within="y = tl.load(")])) for item in bounds]
    assert given == [False, True]
    assert str(entry(within="y =")) == "common/triton_f:kernel:shift-bound: n < K → … in y ="


def test_a_reason_for_one_device_says_nothing_of_the_other() -> None:
    assert reason_of(SHIFTED, "cpu", [entry(device="cpu")])
    assert not reason_of(SHIFTED, "cuda", [entry(device="cpu")])


def test_an_entry_that_meets_no_mutant_is_stale() -> None:
    assert stale(EVERY, [], "cpu", [entry()]) == []
    [text] = stale(EVERY, [], "cpu", [entry(before="n < N")])
    assert text == "common/triton_f:kernel:shift-bound: n < N → …: no such mutant"


def test_an_entry_whose_mutant_is_killed_is_stale_where_it_holds() -> None:
    [text] = stale(EVERY, [SHIFTED], "cpu", [entry()])
    assert text == f"common/triton_f:kernel:shift-bound: n < K → …: {SHIFTED.id} is killed"
    assert stale(EVERY, [SHIFTED], "cuda", [entry(device="cpu")]) == []


def test_an_entry_counts_where_its_code_runs_and_it_holds() -> None:
    assert entry().counts_for("kda") and entry().counts_for("gated_delta_rule")
    assert entry(campaign="kda").counts_for("kda") and not entry(campaign="kda").counts_for("gated_delta_rule")
    own = Equivalent("kda/triton_f:kernel", "never run")
    assert own.counts_for("kda") and not own.counts_for("gated_delta_rule")


def test_every_entry_of_the_list_meets_a_mutant_and_has_a_reason() -> None:
    every = [mutant for name in operators() for mutant in generate(sources(name))]
    assert stale(every, [], "cpu") == []
    names = {operator.name for operator in OPERATORS}
    for item in EQUIVALENT:
        assert item.reason
        assert item.operator in {"", *names}
        assert item.device in ("", "cpu", "cuda")
        assert item.campaign in ("", *operators())
