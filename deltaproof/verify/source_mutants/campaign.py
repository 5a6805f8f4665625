"""A whole run of source mutants: choose them, have them tried in a process of their own, and add up."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from deltaproof.contracts.errors import ContractError
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check
from deltaproof.reports.source_mutants import Score, SourceMutantRow, SourceMutantsReport
from deltaproof.verify.keeper import Keeper
from deltaproof.verify.machine import commit, machine, versions
from deltaproof.verify.runner import Selection
from deltaproof.verify.source_mutants import untaken
from deltaproof.verify.source_mutants.equivalent import EQUIVALENT, Equivalent, reason_of, stale
from deltaproof.verify.source_mutants.generate import SourceMutant, generate
from deltaproof.verify.source_mutants.nursery import Batch, Control, Finished, Verdict, nurse
from deltaproof.verify.source_mutants.resume import digest, history, verdicts_of
from deltaproof.verify.source_mutants.source import sources
from deltaproof.verify.source_mutants.untaken import taken
from deltaproof.verify.worker import Setup, Task

NOT_RUN = "no check of this run launches it"


@dataclass(frozen=True)
class Campaign:
    """What is asked for.

    Attributes:
        selection: the operator, the device, the tier, and which probes, forms and cases to use.
        backend: the backend whose kernels are mutated.
        seed: seed of every input and of the sample.
        jobs: processes at a time.
        sample: how many mutants to draw; None for all.
        mutants: ids of mutants, or patterns with "*"; empty for all.
        minutes: after this time no further mutant is begun; None for no limit.
    """

    selection: Selection
    backend: str = "triton"
    seed: int = 0
    jobs: int = 1
    sample: int | None = None
    mutants: tuple[str, ...] = ()
    minutes: float | None = None

    def tasks(self) -> list[tuple[int, Task]]:
        """Return the checks to make: those of the smoke tier, then what the full tier adds."""
        chosen = self.selection
        tiers = ("smoke", "full") if chosen.tier == "full" and not chosen.cases else (chosen.tier,)
        found: dict[tuple[str, str], tuple[int, Task]] = {}
        for rank, tier in enumerate(tiers):
            part = replace(chosen, tier=tier)
            for task in part.tasks()[0]:
                found.setdefault((task.probe, task.case.id), (rank, task))
        return list(found.values())

    def size(self) -> int:
        """Return how many checks the control makes and how many mutants are tried."""
        name = self.selection.operator.name
        return len(self.tasks()) + len(self.choose(taken(name, generate(sources(name)))))

    def choose(self, everything: Sequence[SourceMutant]) -> list[SourceMutant]:
        """Return the mutants to try, in order.

        Raises:
            ContractError: a pattern meets none of them.
        """
        chosen = list(everything)
        if self.mutants:
            for pattern in self.mutants:
                if not any(fnmatchcase(item.id, pattern) for item in everything):
                    raise ContractError("mutant", "the id of a mutant, or a pattern with * that meets one", pattern)
            chosen = [item for item in chosen if any(fnmatchcase(item.id, pattern) for pattern in self.mutants)]
        if self.sample is not None and self.sample < len(chosen):
            drawn = set(random.Random(self.seed).sample(range(len(chosen)), self.sample))
            chosen = [item for place, item in enumerate(chosen) if place in drawn]
        return chosen


@contextmanager
def _environment(device: str, cache: str) -> Iterator[None]:
    """Set what a new process reads when it imports triton, and put it back."""
    wanted = {
        "TRITON_INTERPRET": "1" if device == "cpu" else "0",
        "TRITON_CACHE_DIR": cache,
        # asking for a GPU must not start CUDA in the process that is forked
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass
class _Results:
    """What has come from the process that mutants are forked from."""

    control: Control = field(default_factory=Control)
    verdicts: list[Verdict] = field(default_factory=list)
    finished: Finished | None = None

    def collect(self, batch: Batch, advance: Callable[[str], None], keep: Callable[[], None]) -> None:
        """Run a batch in a new process, and take what it sends until it ends."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        keeper = Keeper(keep)
        with tempfile.TemporaryDirectory(prefix="deltaproof-") as cache:
            process = context.Process(target=nurse, args=(theirs, batch))
            with _environment(batch.setup.device, cache):
                process.start()
            theirs.close()
            try:
                while True:
                    if ours.poll(keeper.wait()):
                        self._take(ours.recv(), advance)
                        keeper.news = self.finished is None
            except EOFError:
                pass
            finally:
                ours.close()
                process.join()
        if self.finished is None:
            text = f"the process that mutants are forked from died: exit code {process.exitcode}"
            self.control.failures.append(text)

    def _take(self, found: object, advance: Callable[[str], None]) -> None:
        if isinstance(found, Control):
            self.control = found
        elif isinstance(found, Finished):
            self.finished = found
        elif isinstance(found, Verdict):
            self.verdicts.append(found)
            advance(found.mutant)
        elif isinstance(found, Check):
            advance(f"control {found.probe}")


def run(
    campaign: Campaign,
    command: Sequence[str] | None = None,
    advance: Callable[[str], None] = lambda name: None,
    entries: Iterable[Equivalent] = EQUIVALENT,
    keep: Callable[[SourceMutantsReport], None] = lambda report: None,
    earlier: SourceMutantsReport | None = None,
) -> SourceMutantsReport:
    """Run a campaign.

    Args:
        campaign: what is asked for.
        command: the command line, for the report.
        advance: called with the name of every check of the control and of every mutant that is done.
        entries: the reviewed list.
        keep: called from time to time with the report so far, which is not ``complete``.
        earlier: a run to go on with: its verdicts are taken over, and the other mutants are tried.

    Raises:
        ContractError: the choice names nothing, or the earlier run's verdicts do not hold for this one.
    """
    started = time.perf_counter()
    name = campaign.selection.operator.name
    files = sources(name)
    entries = tuple(entry for entry in entries if entry.counts_for(name))
    all_of_them = generate(files)
    everything = taken(name, all_of_them)
    chosen = campaign.choose(everything)
    device = campaign.selection.device
    setup = Setup(campaign.backend, name, device, campaign.seed, threads=1)
    texts = {name: source.text for name, source in files.items()}
    stems = {name: source.stem for name, source in files.items()}
    seconds = None if campaign.minutes is None else campaign.minutes * 60
    told: dict[str, object] = {
        "operator": setup.operator,
        "backend": campaign.backend,
        "device": device,
        "tier": campaign.selection.tier,
        "forms": list(campaign.selection.forms),
        "probes": list(campaign.selection.probes),
        "cases": list(campaign.selection.cases),
        "patterns": list(campaign.mutants),
        "sample": campaign.sample,
        "seed": campaign.seed,
        "jobs": campaign.jobs,
        "generated": len(everything),
        "left_out": len(all_of_them) - len(everything),
        "command": " ".join(command or ["deltaproof", *sys.argv[1:]]),
        "machine": machine(device),
        "versions": versions(),
        "commit": commit(),
        "sources": digest(),
    }
    known: dict[str, SourceMutantRow] = {}
    if earlier is not None:
        known = verdicts_of(earlier, told, chosen)
        told["earlier"] = history(earlier, len(known))
    left = [item for item in chosen if item.id not in known]
    batch = Batch(setup, texts, stems, campaign.tasks(), left, campaign.jobs, seconds)
    results = _Results()

    def report() -> SourceMutantsReport:
        tried = {item.mutant: item for item in results.verdicts}
        rows = [
            _explained(known[item.id] if item.id in known else _row(item, tried[item.id]), item, device, entries)
            for item in chosen
            if item.id in known or item.id in tried
        ]
        dead = {row.mutant for row in rows if row.killed_by}
        killed = [item for item in chosen if item.id in dead]
        control, finished = results.control, results.finished
        found = {
            "complete": finished is not None,
            "not_begun": len(chosen) - len(rows) if finished is None else finished.left,
            "control_passed": len(control.ran),
            "control_left_out": control.left_out,
            "control_failures": list(control.failures),
            "stale": [*stale(all_of_them, killed, device, entries), *untaken.stale(name, all_of_them)],
            "seconds": time.perf_counter() - started,
        }
        return summary(rows).model_copy(update={**told, **found})

    if left or earlier is None:
        results.collect(batch, advance, lambda: keep(report()))
        return report()
    results.finished = Finished()
    control = {name: getattr(earlier, name) for name in ("control_passed", "control_left_out")}
    return report().model_copy(update=control)


def _explained(
    row: SourceMutantRow, mutant: SourceMutant, device: str, entries: tuple[Equivalent, ...]
) -> SourceMutantRow:
    """Return a row with what the reviewed list says of it now."""
    reason = reason_of(mutant, device, entries)
    silent = row.killed_by is None and not reason and not row.checks and not row.inconclusive
    return row.model_copy(update={"reason": reason, "note": NOT_RUN if silent else ""})


def _row(mutant: SourceMutant, verdict: Verdict) -> SourceMutantRow:
    task = verdict.check
    return SourceMutantRow(
        mutant=mutant.id,
        mutation=mutant.operator,
        hazard=mutant.hazard,
        function=mutant.place,
        file=f"{mutant.module.replace('.', '/')}.py",
        line=mutant.line,
        before=mutant.before,
        after=mutant.after,
        killed_by=verdict.killed_by,  # type: ignore[arg-type]
        probe=task.probe if task else None,
        case=task.case.id if task else None,
        clause=verdict.clause,
        message=verdict.message[:400],
        checks=verdict.checks,
        inconclusive=verdict.inconclusive,
        seconds=verdict.seconds,
    )


def summary(rows: list[SourceMutantRow]) -> SourceMutantsReport:
    """Return a report of these rows, without what it says of the run."""

    def score(name: str) -> dict[str, Score]:
        found: dict[str, Score] = {}
        for row in rows:
            old = found.get(getattr(row, name), Score(killed=0, total=0))
            found[getattr(row, name)] = Score(killed=old.killed + (row.killed_by is not None), total=old.total + 1)
        return dict(sorted(found.items()))

    killed = sum(row.killed_by is not None for row in rows)
    equivalent = sum(row.killed_by is None and bool(row.reason) for row in rows)
    able = len(rows) - equivalent
    return SourceMutantsReport(
        total=len(rows),
        killed=killed,
        killed_by_check=sum(row.killed_by == "check" for row in rows),
        equivalent=equivalent,
        score=killed / len(rows) if rows else 0.0,
        score_without_equivalent=killed / able if able else 0.0,
        by_mutation=score("mutation"),
        by_function=score("function"),
        rows=rows,
    )


def default_jobs() -> int:
    """Return how many processes to use: one a core, up to 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores)


def campaign_for(
    name: str, device: str, tier: str, forms: tuple[str, ...], probes: tuple[str, ...], cases: tuple[str, ...],
    **options: object,
) -> Campaign:  # fmt: skip
    """Return a campaign from what a command line says; see ``Campaign`` for the options."""
    # on the CPU the kernels are interpreted
    selection = Selection(operator(name), forms, probes, cases, tier, device, interpreted=device == "cpu")
    return Campaign(selection, **options)  # type: ignore[arg-type]
