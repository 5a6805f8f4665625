"""Running a tier against a backend in processes of its own: a crash or a hang is a result, not the end of the run."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from deltaproof.contracts.errors import ContractError
from deltaproof.contracts.operator import Operator
from deltaproof.reports.model import BackendInfo, Check, Status, VerifyReport
from deltaproof.verify.execute import repeat_command_for
from deltaproof.verify.given import still_legal, with_given
from deltaproof.verify.keeper import Keeper
from deltaproof.verify.machine import commit, machine, versions
from deltaproof.verify.probe import Plan, Probe, probes, probes_of
from deltaproof.verify.worker import Setup, Task, serve

START_SECONDS = 120.0
STOP_SECONDS = 5.0
NOT_REACHED = "the run did not reach its end"


class StartError(Exception):
    """The backend could not be loaded; the text says why."""


@dataclass(frozen=True)
class Selection:
    """What the user asked to run.

    Attributes:
        operator: the operator.
        forms: forms to cover; empty means all.
        probes: probes to run; empty means all.
        cases: ids of cases to run; empty means all. Looked for in both tiers.
        tier: "smoke" or "full".
        device: "cpu" or "cuda".
        interpreted: whether the backend's kernels run in Triton's interpreter.
        given: fields set in every case, as FIELD=VALUE; cases that are then the same are run once.
    """

    operator: Operator
    forms: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    tier: str = "smoke"
    device: str = "cpu"
    interpreted: bool = False
    given: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        able = tuple(probes_of(self.operator))
        for name, chosen, known in (("form", self.forms, self.operator.forms), ("probe", self.probes, able)):
            for item in chosen:
                if item not in known:
                    raise ContractError(name, f"one of {', '.join(known)}", repr(item))

    def tasks(self) -> tuple[list[Task], list[Check]]:
        """Return what to run, and a check for every probe and form left out, saying why."""
        tasks: list[Task] = []
        left_out: list[Check] = []
        for probe in probes_of(self.operator).values():
            for form in self.operator.forms:
                if form not in probe.forms:
                    continue
                base: dict[str, Any] = {"probe": probe.name, "case": f"{form}/*", "form": form, "clause": probe.clause}
                if (self.probes and probe.name not in self.probes) or (self.forms and form not in self.forms):
                    left_out.append(Check(**base, status=Status.NOT_RUN, reason="not selected"))
                elif probe.cuda_only and self.device != "cuda":
                    left_out.append(Check(**base, status=Status.SKIPPED, reason="needs a GPU"))
                else:
                    tasks += self._cases(probe, form)
        if self.cases and not tasks:
            raise ContractError("case", "the id of a case of the chosen probes and forms", ", ".join(self.cases))
        return tasks, left_out

    def _cases(self, probe: Probe, form: str) -> Iterator[Task]:
        tiers = ("smoke", "full") if self.cases else (self.tier,)
        seen = set()
        for tier in tiers:
            for case in probe.cases(Plan(self.operator, form, tier, self.device, self.interpreted)):
                if self.given:
                    case = with_given(case, self.given)
                    if not (still_legal(case) and probe.still_about(case)):
                        continue
                if case.id in seen and len(tiers) == 1 and not self.given:
                    raise AssertionError(f"probe {probe.name} names two cases {case.id!r}")
                if case.id not in seen and (not self.cases or case.id in self.cases):
                    yield Task(probe.name, case)
                seen.add(case.id)


@dataclass
class _Worker:
    """One process and what it is doing."""

    setup: Setup
    process: Any = None
    connection: Connection | None = None
    info: BackendInfo | None = None
    task: Task | None = None
    deadline: float = 0.0

    def start(self) -> None:
        """Start the process and wait until it has loaded the backend."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["deltaproof.verify.worker"])
        ours, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.setup), daemon=True)
        self.process.start()
        theirs.close()
        self.connection = ours
        if not ours.poll(START_SECONDS):
            self.stop()
            raise StartError(f"the backend did not load within {START_SECONDS:g} s")
        try:
            answer = ours.recv()
        except EOFError:
            raise StartError(f"the process ended while loading the backend: {self.ending()}") from None
        if isinstance(answer, str):
            raise StartError(answer)
        self.info = answer

    def give(self, task: Task) -> None:
        assert self.connection is not None
        self.task, self.deadline = task, time.monotonic() + probes()[task.probe].timeout
        self.connection.send(task)

    def stop(self) -> None:
        """End the process: an idle one by closing its connection, a busy one by force."""
        if self.connection is not None:
            self.connection.close()
        if self.process is None:
            return
        if self.task is None:
            self.process.join(STOP_SECONDS)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()

    def ending(self) -> str:
        """Say how the process ended."""
        self.process.join(5)
        code = self.process.exitcode
        if code is None:
            return "it closed its connection"
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"


@dataclass
class Runner:
    """Runs a selection on a number of worker processes.

    Attributes:
        setup: what each worker is given.
        selection: what to run.
        jobs: number of processes.
        progress: called with every finished check.
        keep: called from time to time with the report so far, which is not ``complete``.
    """

    setup: Setup
    selection: Selection
    jobs: int = 1
    progress: Callable[[Check], None] = field(default=lambda check: None)
    keep: Callable[[VerifyReport], None] = field(default=lambda report: None)
    ran: dict[str, set[str]] = field(default_factory=dict, init=False)
    late: set[tuple[str, str]] = field(default_factory=set, init=False)

    def run(self, command: Sequence[str]) -> VerifyReport:
        """Run everything and return the report.

        Raises:
            StartError: the backend cannot be loaded.
            ContractError: the selection names nothing.
        """
        started = time.perf_counter()
        here, packages, source = machine(self.setup.device), versions(), commit()
        tasks, left_out = self.selection.tasks()
        done: list[Check] = []
        workers = [_Worker(self.setup) for _ in range(max(1, min(self.jobs, len(tasks))))]

        def report(complete: bool) -> VerifyReport:
            info = workers[0].info
            assert info is not None
            known = {(check.probe, check.case): check for check in done}
            checks = [known.get((task.probe, task.case.id)) or _not_reached(task) for task in tasks]
            return VerifyReport(
                complete=complete,
                operator=self.selection.operator.name,
                contract_version=self.selection.operator.contract_version,
                backend=info.model_copy(update={"ran": {form: sorted(ran) for form, ran in sorted(self.ran.items())}}),
                device=self.setup.device,
                tier=self.selection.tier,
                seed=self.setup.seed,
                command=" ".join(command),
                machine=here,
                versions=packages,
                commit=source,
                seconds=time.perf_counter() - started,
                checks=checks + left_out,
            )

        def finish(check: Check) -> None:
            done.append(check)
            self.progress(check)
            keeper.news = True
            keeper.wait()

        keeper = Keeper(lambda: self.keep(report(complete=False)))
        try:
            for worker in workers:
                worker.start()
            alone = [task for task in tasks if self.setup.device == "cuda" and probes()[task.probe].alone]
            # what may take longest begins first, so that no process is left with it at the end
            together = sorted((task for task in tasks if task not in alone), key=lambda x: -probes()[x.probe].timeout)
            self._drain(workers, deque(together), finish)
            for worker in workers[1:]:
                worker.stop()
            self._drain(workers[:1], deque(alone), finish)
        finally:
            for worker in workers:
                worker.stop()
        return report(complete=True)

    def _drain(self, workers: list[_Worker], waiting: deque[Task], finish: Callable[[Check], None]) -> None:
        while waiting or any(worker.task for worker in workers):
            for worker in workers:
                if worker.task is None and waiting:
                    worker.give(waiting.popleft())
            busy = {worker.connection: worker for worker in workers if worker.task is not None}
            nearest = min(worker.deadline for worker in busy.values())
            ready = multiprocessing.connection.wait(list(busy), max(0.0, nearest - time.monotonic()))  # type: ignore[arg-type]
            for connection in ready:
                worker = busy[connection]  # type: ignore[index]
                try:
                    check, sound, ran = worker.connection.recv()  # type: ignore[union-attr]
                    for form, names in ran.items():
                        self.ran.setdefault(form, set()).update(names)
                    if not sound:
                        self._restart(worker)
                except (EOFError, OSError):
                    check = self._lost(worker, f"the backend's process died: {worker.ending()}")
                    self._restart(worker)
                worker.task = None
                finish(check)
            for worker in workers:
                if worker.task is not None and time.monotonic() > worker.deadline:
                    self._overdue(worker, waiting, finish)

    def _overdue(self, worker: _Worker, waiting: deque[Task], finish: Callable[[Check], None]) -> None:
        """Give a task that took too long one more try, which finds what the first compiled; then call it a failure."""
        task = worker.task
        assert task is not None
        key = (task.probe, task.case.id)
        if key in self.late:
            timeout = probes()[task.probe].timeout
            finish(self._lost(worker, f"no answer within {timeout:g} s, twice: the backend hangs or is far too slow"))
        else:
            self.late.add(key)
            waiting.append(task)
        self._restart(worker)
        worker.task = None

    def _restart(self, worker: _Worker) -> None:
        worker.stop()
        task = worker.task
        worker.start()
        worker.task = task

    def _lost(self, worker: _Worker, message: str) -> Check:
        task = worker.task
        assert task is not None
        probe = probes()[task.probe]
        return Check(
            probe=probe.name,
            case=task.case.id,
            form=task.case.form,
            status=Status.FAIL,
            clause=probe.clause,
            hazard=probe.hazards[0] if probe.hazards else None,
            message=message,
            repeat=repeat_command_for(
                self.selection.operator.name,
                self.setup.spec,
                self.setup.device,
                probe.name,
                task.case.id,
                self.setup.seed,
                self.setup.given,
            ),
        )


def _not_reached(task: Task) -> Check:
    clause = probes()[task.probe].clause
    return Check(
        probe=task.probe, case=task.case.id, form=task.case.form, clause=clause, status=Status.NOT_RUN,
        reason=NOT_REACHED,
    )  # fmt: skip


def exit_code(report: VerifyReport) -> int:
    """Return 0 if all that ran passed, 1 on a failure, 2 on a harness error or where no values check ran."""
    counts = report.counts()
    judges = _judges()
    ran = any(check.probe in judges and check.status in (Status.PASS, Status.FAIL) for check in report.checks)
    if counts["error"] or (not ran and not _selected(report)):
        return 2
    return 1 if counts["fail"] else 0


def _judges() -> set[str]:
    return {probe.name for probe in probes().values() if probe.judges_values}


def _selected(report: VerifyReport) -> bool:
    """Return whether the user left the values probe out by choosing others that did run."""
    judges = _judges()
    left_out = any(check.probe in judges and check.status is Status.NOT_RUN for check in report.checks)
    return left_out and any(check.status in (Status.PASS, Status.FAIL) for check in report.checks)


def default_jobs(device: str) -> int:
    """Return the number of worker processes to use: the cores of a small machine, one on a GPU."""
    return 1 if device == "cuda" else min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
