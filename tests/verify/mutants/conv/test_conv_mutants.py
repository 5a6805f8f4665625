"""Every mutant of the convolution falls to the probe and by the clause that are its own; the unbroken one does not."""

from __future__ import annotations

import io
from functools import cache

import pytest
import torch
from rich.console import Console

from deltaproof.ops.causal_conv1d.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Status
from deltaproof.reports.mutants_text import print_matrix
from deltaproof.verify.conv.case import ConvCase
from deltaproof.verify.conv.inputs import build
from deltaproof.verify.inputs import whole_memory
from deltaproof.verify.mutants import Mutant, mutants
from deltaproof.verify.mutants.cheats import Cheat
from deltaproof.verify.mutants.conv.cheats import CHEATS
from deltaproof.verify.mutants.conv.model import ConvModel
from deltaproof.verify.mutants.conv.naive import naive_cases, survives
from deltaproof.verify.mutants.matrix import Outcome, attempt, run_matrix, try_cheat
from deltaproof.verify.probe import Plan, probes, probes_of

OPERATOR = operator("causal_conv1d")
MUTANTS = mutants("causal_conv1d")
CLAUSES = {
    "N2": (
        "taps-across-sequences", "future-token", "taps-reversed", "bias-dropped", "silu-dropped", "silu-always",
        "sum-in-input-dtype", "products-in-input-dtype", "tail-copied", "token-count-ignored", "keyed-by-shape",
        "window-stored-first", "square-window-misread", "window-through-bf16", "window-through-input",
        "whole-blocks-stored",
    ),
    "P1": (
        "raw-negative", "wrap-to-last-slot", "remainder-of-slots", "no-upper-bound", "fresh-from-slot",
        "fresh-times-zero", "any-row-fresh", "read-for-write", "short-read-for-write", "write-for-read",
        "token-count-trusted", "padded-width-stored",
    ),
    "P2": ("clamp-to-slot-0", "narrow-index", "padding-row-kept"),
    "P4": ("empty-row-zeroed", "empty-row-left"),
    "P5": ("pool-copied", "dense-slots", "narrow-offset"),
    "P7": ("rejected-taken-in", "window-after-tokens", "taps-skip-drafts", "one-half", "padding-drafts"),
    "M1": ("padding-unwritten", "uncounted-unwritten", "tail-unwritten"),
    "M2": ("input-overwritten",),
    "M3": ("dense-input",),
    "I1": ("tuned-in-place",),
    "I2": ("order-by-batch",),
    "T3": ("window-one-early", "short-row-shifted", "short-row-forgets"),
}  # fmt: skip
EXPECTED = {name: clause for clause, names in CLAUSES.items() for name in names}
IN_BOTH_FORMS = (
    "raw-negative", "clamp-to-slot-0", "wrap-to-last-slot", "remainder-of-slots", "no-upper-bound", "narrow-index",
    "padding-row-kept", "fresh-from-slot", "fresh-times-zero", "any-row-fresh", "read-for-write", "write-for-read",
    "pool-copied", "dense-slots", "narrow-offset", "window-one-early", "empty-row-zeroed", "empty-row-left",
    "square-window-misread", "window-through-bf16", "window-through-input", "taps-reversed", "bias-dropped",
    "silu-dropped", "silu-always", "sum-in-input-dtype", "products-in-input-dtype", "future-token", "keyed-by-shape",
    "dense-input", "short-row-shifted", "short-row-forgets", "padding-unwritten", "order-by-batch",
    "whole-blocks-stored",
)  # fmt: skip
"""Those whose fault is not of one form: its probe sees it in the other too."""
SEEN_BY_THE_NAIVE = {
    "future-token", "taps-reversed", "bias-dropped", "silu-dropped", "tuned-in-place", "window-stored-first",
    "window-one-early",
}  # fmt: skip


@cache
def control(probe: str, form: str) -> Outcome:
    return attempt(ConvModel(), probes()[probe], form, 0)


def caught(item: Mutant, form: str) -> Outcome:
    outcome = attempt(item.make(), probes()[item.probe], form, 0)
    assert outcome.first is not None, "the mutant lives"
    assert outcome.first.status is Status.FAIL, outcome.first.message
    return outcome


def cases(tier: str) -> list[ConvCase]:
    found = []
    for name in ("conv_values", "conv_slots", "conv_rows"):
        for form in OPERATOR.forms:
            found += list(probes()[name].cases(Plan(OPERATOR, form, tier, "cpu")))
    return found  # type: ignore[return-value]


def test_the_expected_clauses_name_every_mutant_once() -> None:
    assert set(EXPECTED) == set(MUTANTS)
    assert sum(map(len, CLAUSES.values())) == len(MUTANTS)


@pytest.mark.parametrize("name", MUTANTS)
def test_its_probe_kills_it_by_the_clause(name: str) -> None:
    item = MUTANTS[name]
    outcome = caught(item, item.form)
    assert outcome.first is not None
    assert outcome.first.clause == EXPECTED[name]
    assert outcome.first.clause in probes()[item.probe].clauses
    assert outcome.first.case in outcome.first.repeat.replace("'", "")


@pytest.mark.parametrize("name", IN_BOTH_FORMS)
def test_it_falls_in_the_other_form_too(name: str) -> None:
    item = MUTANTS[name]
    [other] = set(OPERATOR.forms) - {item.form}
    caught(item, other)


@pytest.mark.parametrize("form", OPERATOR.forms)
@pytest.mark.parametrize("probe", probes_of(OPERATOR))
def test_the_control_passes(probe: str, form: str) -> None:
    outcome = control(probe, form)
    assert outcome.first is None
    assert outcome.passed == len(list(probes()[probe].cases(Plan(OPERATOR, form, "smoke", "cpu"))))


def test_the_control_gives_the_torch_backends_bits() -> None:
    chosen = cases("smoke")
    assert len(chosen) > 60
    for case in chosen:
        calls = [build(case, 0) for _ in range(2)]
        mine, torchs = (
            getattr(one(), case.form)(call) for one, call in zip((ConvModel, TorchBackend), calls, strict=True)
        )
        assert torch.equal(mine.view(torch.uint8), torchs.view(torch.uint8)), case.id
        assert torch.equal(*(whole_memory(call.pool) for call in calls)), case.id


@pytest.mark.parametrize("backend", [ConvModel, TorchBackend])
@pytest.mark.parametrize("form", OPERATOR.forms)
def test_a_right_backend_passes_the_naive_suite(backend: type, form: str) -> None:
    assert survives(backend(), form)


def test_the_naive_suite_sees_what_is_plainly_wrong_and_little_else() -> None:
    assert {item.name for item in MUTANTS.values() if not survives(item.make(), item.form)} == SEEN_BY_THE_NAIVE


def test_a_backend_that_raises_fails_the_naive_suite() -> None:
    class Crashing(ConvModel):
        def rows(self, call):  # type: ignore[no-untyped-def]
            raise RuntimeError("no")

    assert not survives(Crashing(), "decode")


def test_its_cases_are_as_naive_as_they_say() -> None:
    for form in OPERATOR.forms:
        for case in naive_cases(form):
            assert case.C >= 64
            assert (case.read, case.write, case.fresh, case.num_tokens, case.seqlens) == (None,) * 5


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.name)
def test_no_cheat_fools_the_harness(cheat: Cheat) -> None:
    row = try_cheat(cheat, seed=0)
    assert not row.fooled
    assert set(row.verdicts) == set(OPERATOR.forms)
    assert set(row.verdicts.values()) <= {"fail", "error"}


def test_an_honest_backend_would_count_as_having_fooled_it() -> None:
    row = try_cheat(Cheat("honest", "computes", ConvModel, "conv_values"), seed=0)
    assert row.fooled
    assert set(row.verdicts.values()) == {"pass"}


@pytest.mark.slow
def test_the_whole_matrix() -> None:
    report = run_matrix(jobs=2, seed=0, name="causal_conv1d")
    assert report.operator == "causal_conv1d"
    assert report.control_failures == []
    assert [row.mutant for row in report.rows if not row.killed] == []
    assert (report.killed, report.total) == (len(MUTANTS), len(MUTANTS))
    assert set(report.by_probe) == set(probes_of(OPERATOR))
    assert report.naive_survivors == len(MUTANTS) - len(SEEN_BY_THE_NAIVE)
    assert [cheat.cheat for cheat in report.cheats if cheat.fooled] == []
    file = io.StringIO()
    print_matrix(report, Console(file=file, width=200))
    assert f"a naive suite ({report.naive_suite}) lets {report.naive_survivors} of them live" in file.getvalue()
