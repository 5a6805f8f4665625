"""The kill matrix: every mutant against every probe of its form, beside the unbroken backend.

A task is one probe and one form: the control and all mutants of that form run it in turn. A mutant is done with a
probe at its first failure. It counts as killed if the probe of its own hazard fails it, and the control passes that
probe. Other probes run their first few cases on it, which says in what other ways its fault can be seen.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import torch

from deltaproof.backends.protocol import Backend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check, Status
from deltaproof.reports.mutants import CheatRow, MatrixReport, MutantRow, ProbeScore
from deltaproof.verify.execute import execute
from deltaproof.verify.expected import Reference
from deltaproof.verify.mutants import Mutant, mutants
from deltaproof.verify.mutants.cheats import Cheat, doubles
from deltaproof.verify.mutants.suite import suite
from deltaproof.verify.probe import Context, Plan, Probe, probes, probes_of
from deltaproof.verify.target import Target

OTHER_CASES = 2
"""Cases that a probe runs on a mutant, or on the control, where none of the form's mutants is its own."""
BROKEN = (Status.FAIL, Status.ERROR)


@dataclass
class Outcome:
    """What one backend made of one probe and form.

    Attributes:
        first: the first check that failed or was an error, if any.
        passed: checks that passed before it.
        seconds: processor time they took.
    """

    first: Check | None = None
    passed: int = 0
    seconds: float = 0.0


@dataclass
class Round:
    """One probe and form: the control's outcome and every mutant's."""

    probe: str
    form: str
    control: Outcome
    mutants: dict[str, Outcome] = field(default_factory=dict)


def attempt(
    backend: Backend,
    probe: Probe,
    form: str,
    seed: int,
    reference: Reference | None = None,
    most: int | None = None,
) -> Outcome:
    """Run a probe's smoke tier, or ``most`` cases of it, on a backend up to the first check that does not hold."""
    found = operator(backend.operator)
    context = Context(Target(backend, found, backend.name, face=False), seed, "cpu")
    if reference is not None:
        context.reference = reference
    outcome = Outcome()
    started = time.process_time()
    for case in islice(probe.cases(Plan(found, form, "smoke", "cpu")), most):
        check = execute(context, probe, case)
        outcome.passed += check.status is Status.PASS
        if check.status in BROKEN:
            outcome.first = check
            break
    outcome.seconds = time.process_time() - started
    return outcome


def play(name: str, probe: str, form: str, names: tuple[str, ...], seed: int) -> Round:
    """Run a probe and form on the control of an operator and on its mutants of these names."""
    how, known, chosen = suite(name), mutants(name), probes()[probe]
    reference = None if how.reference is None else how.reference()
    most = {one: None if known[one].probe == probe else OTHER_CASES for one in names}
    control = None if None in most.values() else OTHER_CASES
    result = Round(probe, form, attempt(how.control(), chosen, form, seed, reference, control))
    for one in names:
        result.mutants[one] = attempt(known[one].make(), chosen, form, seed, reference, most[one])
    return result


def naive(name: str, names: tuple[str, ...], seed: int) -> dict[str, bool]:
    """Return which mutants of an operator the naive suite lets live."""
    survives, found = suite(name).survives, [mutants(name)[one] for one in names]
    return {mutant.name: survives(mutant.make(), mutant.form, seed) for mutant in found}


def try_cheat(cheat: Cheat, seed: int) -> CheatRow:
    """Run a cheat's probe on it, each form up to its first check that does not hold."""
    verdicts = {}
    probe = probes()[cheat.probe]
    # what a cheat writes over must not outlive it
    memory = [(x, x.clone()) for x in doubles()]
    try:
        for form in operator(cheat.make().operator).forms:
            outcome = attempt(cheat.make(), probe, form, seed)
            verdicts[form] = (Status.PASS if outcome.first is None else outcome.first.status).value
    finally:
        with torch.no_grad():
            for x, was in memory:
                x.copy_(was)
    return CheatRow(cheat=cheat.name, what=cheat.what, fooled=Status.PASS.value in verdicts.values(), verdicts=verdicts)


def try_cheats(name: str, seed: int) -> list[CheatRow]:
    """Run every cheat of an operator."""
    return [try_cheat(cheat, seed) for cheat in suite(name).cheats]


def _start() -> None:
    torch.set_num_threads(1)


def run_matrix(
    jobs: int,
    seed: int,
    mutants: Iterable[Mutant] | None = None,
    advance: Callable[[str], None] | None = None,
    name: str = "gated_delta_rule",
) -> MatrixReport:
    """Run the matrix of an operator on ``jobs`` processes.

    Args:
        jobs: number of processes, each with one torch thread.
        seed: seed of every input.
        mutants: entries of the operator's catalogue; all of them by default.
        advance: called with the name of every task that is done.
        name: the operator.

    Raises:
        ContractError: the operator has no mutants.
    """
    started = time.perf_counter()
    suite(name)
    found = operator(name)
    chosen = _catalogue(name) if mutants is None else tuple(mutants)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deltaproof.verify.mutants.matrix"])
    rounds: list[Round] = []
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start) as pool:
        tasks: dict[str, Future[Round]] = {}
        for form in found.forms:
            names = tuple(mutant.name for mutant in chosen if mutant.form == form)
            for probe in probes_of(found).values():
                if names and form in probe.forms and not probe.cuda_only:
                    tasks[f"{probe.name} {form}"] = pool.submit(play, name, probe.name, form, names, seed)
        lives = pool.submit(naive, name, tuple(mutant.name for mutant in chosen), seed)
        cheats = pool.submit(try_cheats, name, seed)
        for label, task in tasks.items():
            rounds.append(task.result())
            if advance is not None:
                advance(label)
        report = _report(name, chosen, rounds, lives.result(), cheats.result(), seed)
    return report.model_copy(update={"seconds": time.perf_counter() - started})


def _catalogue(name: str) -> tuple[Mutant, ...]:
    return tuple(mutants(name).values())


def _report(
    name: str,
    chosen: tuple[Mutant, ...],
    rounds: list[Round],
    lives: dict[str, bool],
    cheats: list[CheatRow],
    seed: int,
) -> MatrixReport:
    rows = [_row(mutant, rounds, lives[mutant.name]) for mutant in chosen]
    by_probe = {}
    for probe in probes():
        own = [row for row in rows if row.own_probe == probe]
        if own:
            by_probe[probe] = ProbeScore(killed=sum(row.killed for row in own), total=len(own))
    killed = sum(row.killed for row in rows)
    failures = [
        f"{item.probe} {item.form}: {item.control.first.case}: {item.control.first.message}"
        for item in rounds
        if item.control.first is not None
    ]
    return MatrixReport(
        operator=name,
        seed=seed,
        score=killed / len(rows) if rows else 0.0,
        killed=killed,
        total=len(rows),
        by_probe=by_probe,
        naive_suite=suite(name).naive,
        naive_survivors=sum(row.naive_survives for row in rows),
        rows=rows,
        cheats=cheats,
        control_failures=failures,
    )


def _row(mutant: Mutant, rounds: list[Round], lives: bool) -> MutantRow:
    mine = {item.probe: item for item in rounds if item.form == mutant.form}
    outcomes = {name: item.mutants[mutant.name] for name, item in mine.items()}
    # a harness error kills nothing
    killers = [name for name, one in outcomes.items() if one.first is not None and one.first.status is Status.FAIL]
    own = mine.get(mutant.probe)
    control = own is not None and own.control.first is None and own.control.passed > 0
    first = outcomes[mutant.probe].first if mutant.probe in killers else None
    return MutantRow(
        mutant=mutant.name,
        hazard=mutant.hazard,
        form=mutant.form,
        story=mutant.story,
        own_probe=mutant.probe,
        killed_by_own=first is not None,
        control_passes=control,
        clause=first.clause if first else None,
        named_hazard=first.hazard if first else None,
        case=first.case if first else None,
        message=first.message if first else "",
        killed_by=killers,
        naive_survives=lives,
        seconds=sum(one.seconds for one in outcomes.values()),
    )
