"""The catalogue of mutants, and the matrix that shows each caught by the probe of its own hazard."""

from __future__ import annotations

import io
from functools import cache

import pytest
from rich.console import Console

from deltaproof.contracts.clauses import CLAUSES
from deltaproof.contracts.errors import ContractError
from deltaproof.hazards import HAZARDS
from deltaproof.ops.registry import operators
from deltaproof.reports.model import Status
from deltaproof.reports.mutants import MatrixReport
from deltaproof.reports.mutants_text import print_matrix
from deltaproof.verify.mutants import Mutant, mutant, mutants
from deltaproof.verify.mutants.matrix import Outcome, attempt, run_matrix
from deltaproof.verify.mutants.model import ModelBackend
from deltaproof.verify.mutants.suite import suite
from deltaproof.verify.probe import probes, probes_of

SHORT = {"flash-linear-attention": "fla"}
DELTA = tuple(mutants().values())
EVERY = tuple(item for name in operators() for item in mutants(name).values())
NO_STORY = "none known"
QUICK = (
    "raw-negative",
    "narrow-offset",
    "unmasked-gate-load",
    "tail-unwritten",
    "empty-sequence-unwritten",
    "dense-query",
    "state-in-place",
    "square-slot-misread",
    "last-row-of-tile",
    "tf32-operands",
    "mask-after-exp",
    "series-inverse-in-bf16",
)


def ident(item: Mutant) -> str:
    return f"{item.operator}-{item.name}"


def references(hazard: str) -> set[str]:
    """Return the public references of a hazard's entry, as stories of mutants spell them."""
    entry = HAZARDS[hazard]
    told = set()
    for story in entry.stories:
        repo = story.repo.split("/")[1]
        told.add(f"{SHORT.get(repo, repo.lower())} {story.reference}")
    return told | set(entry.also_seen)


@cache
def control(probe: str, form: str) -> Outcome:
    return attempt(ModelBackend(), probes()[probe], form, 0)


def test_there_are_at_least_twenty_six() -> None:
    assert len(DELTA) >= 26


def test_every_form_and_many_hazards_are_covered() -> None:
    assert {item.form for item in DELTA} == {"chunk", "recurrent", "decode", "prefill"}
    assert len({item.hazard for item in DELTA}) >= 15


@pytest.mark.parametrize("name", operators())
def test_an_operator_has_a_suite_and_no_mutants_of_another(name: str) -> None:
    assert mutants(name)
    assert suite(name).control().operator == name
    assert {item.operator for item in mutants(name).values()} == {name}
    assert all(item.form in operators()[name].forms for item in mutants(name).values())


def test_an_operator_without_a_suite_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(ContractError, match="causal_conv1d, gated_delta_rule"):
        run_matrix(jobs=1, seed=0, name="attention")


@pytest.mark.parametrize("item", EVERY, ids=ident)
def test_its_hazard_and_its_probe_exist_and_belong_together(item: Mutant) -> None:
    assert item.probe in probes_of(operators()[item.operator])
    assert item.form in probes()[item.probe].forms
    listed = item.probe in HAZARDS[item.hazard].probes or item.hazard in probes()[item.probe].hazards
    assert listed or item.why, "neither the hazard nor the probe names the other, and the mutant does not say why"


@pytest.mark.parametrize("item", EVERY, ids=ident)
def test_its_story_is_one_of_its_hazards(item: Mutant) -> None:
    reference, told, text = item.story.partition(": ")
    assert told
    assert text
    assert "\n" not in item.story
    assert reference == NO_STORY or reference in references(item.hazard)


def test_few_are_without_a_story() -> None:
    assert sum(item.story.startswith(NO_STORY) for item in EVERY) * 10 < len(EVERY)


@pytest.mark.parametrize("item", EVERY, ids=ident)
def test_it_differs_from_the_control_and_says_how(item: Mutant) -> None:
    backend = item.make()
    right = suite(item.operator).control()
    assert isinstance(backend, type(right))
    assert type(backend) is not type(right)
    assert type(backend).__doc__
    assert backend.unsupported == right.unsupported, "a mutant may not declare its fault away"


def test_each_make_returns_a_new_backend() -> None:
    item = mutant("keyed-by-shape")
    assert item.make() is not item.make()


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ContractError, match="raw-negative"):
        mutant("no-such-mutant")


@pytest.mark.parametrize("name", QUICK)
def test_its_own_probe_kills_it_and_passes_the_control(name: str) -> None:
    item = mutant(name)
    outcome = attempt(item.make(), probes()[item.probe], item.form, 0)
    assert outcome.first is not None, "the mutant lives"
    assert outcome.first.status is Status.FAIL
    assert outcome.first.clause in CLAUSES
    right = control(item.probe, item.form)
    assert right.first is None
    assert right.passed > 0


def test_an_unbroken_backend_counts_as_alive() -> None:
    honest = Mutant("honest", "unmasked-load", "recurrent", "ragged", "none", ModelBackend)
    assert attempt(honest.make(), probes()["ragged"], "recurrent", 0).first is None


@pytest.fixture(scope="module")
def report() -> MatrixReport:
    return run_matrix(jobs=2, seed=0)


@pytest.mark.slow
def test_the_whole_matrix(report: MatrixReport) -> None:
    assert report.control_failures == []
    assert [row.mutant for row in report.rows if not row.killed] == []
    assert (report.killed, report.total, report.score) == (len(DELTA), len(DELTA), 1.0)
    assert sum(score.killed for score in report.by_probe.values()) == report.killed
    assert report.naive_survivors >= report.total / 2
    assert [cheat.cheat for cheat in report.cheats if cheat.fooled] == []
    for row in report.rows:
        assert row.own_probe in row.killed_by
        assert row.clause in CLAUSES
        assert row.seconds > 0
    file = io.StringIO()
    print_matrix(report, Console(file=file, width=200))
    assert f"{report.killed} of {report.total} mutants killed (100%)" in file.getvalue()
    assert all(row.mutant in file.getvalue() for row in report.rows)
