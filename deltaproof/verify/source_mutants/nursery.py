"""The process that mutants are forked from: it has imported torch, triton and the harness, but no kernel.

First the unchanged text goes through the same machinery: what it passes is what a mutant can fail, and which kernels
each check launched says which checks a mutant can change at all. Then the mutants, each up to its first failure.
"""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import triton  # noqa: F401  # imported here once, not in every child

from deltaproof.reports.model import Check, Status
from deltaproof.verify.probe import probes
from deltaproof.verify.source_mutants.calls import runs
from deltaproof.verify.source_mutants.generate import SourceMutant
from deltaproof.verify.source_mutants.order import Ran, order
from deltaproof.verify.source_mutants.source import Source
from deltaproof.verify.source_mutants.trial import Answer, Loaded, Trial, serve
from deltaproof.verify.worker import Setup, Task

START_SECONDS = 180.0
PATIENCE = 10.0
"""A mutant's check may take its probe's limit and this many times what the unchanged kernels took."""
RAISED = re.compile(r"(\w+ at [\w.<> -]+:\d+: |a legal call was refused: )")
"""How a check begins whose call raised; see ``deltaproof.verify.execute``."""


@dataclass(frozen=True)
class Batch:
    """All that a nursery is given.

    Attributes:
        setup: the backend, device and seed.
        texts: text of every kernel file by module.
        stems: their ids' first parts.
        tasks: checks, in order, each with the rank of its tier.
        mutants: mutants to try.
        jobs: processes at a time.
        seconds: after this time no further mutant is begun; None for no limit.
    """

    setup: Setup
    texts: Mapping[str, str]
    stems: Mapping[str, str]
    tasks: Sequence[tuple[int, Task]]
    mutants: Sequence[SourceMutant]
    jobs: int
    seconds: float | None = None


@dataclass
class Control:
    """What the unchanged text made of the checks.

    Attributes:
        ran: the checks it passed.
        failures: what went wrong, in words.
        left_out: checks that say nothing here: unsupported or skipped.
    """

    ran: list[Ran] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    left_out: int = 0


@dataclass
class Verdict:
    """What became of one mutant.

    Attributes:
        mutant: its id.
        killed_by: "check", "exception", "crash" or "timeout"; None if it lives.
        check: the check that failed, as far as there is one.
        message: what was seen.
        checks: checks that ran to an end.
        inconclusive: checks that neither passed nor failed.
        seconds: how long it took.
    """

    mutant: str
    killed_by: str | None = None
    check: Task | None = None
    clause: str | None = None
    message: str = ""
    checks: int = 0
    inconclusive: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Finished:
    """All was done; ``left`` mutants were not begun in time."""

    left: int = 0


@dataclass(frozen=True)
class Lost:
    """A process that gave no answer: it died, or took too long."""

    why: str
    text: str


@dataclass
class Child:
    """One forked process and what it is doing."""

    process: Any
    connection: Connection
    waiting: deque[Task]
    limits: Mapping[tuple[str, str], float]
    started: float
    deadline: float
    limit: float = START_SECONDS
    task: Task | None = None
    verdict: Verdict | None = None
    mutant: SourceMutant | None = None

    def give(self, task: Task) -> None:
        """Hand out one check."""
        self.task = task
        self.limit = self.limits.get((task.probe, task.case.id), PATIENCE * probes()[task.probe].timeout)
        self.deadline = time.monotonic() + self.limit
        self.connection.send(task)

    def ending(self) -> str:
        """Say how the process ended."""
        self.process.join(5)
        code = self.process.exitcode
        return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"

    def stop(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.kill()
        self.process.join()


class Gone(Exception):
    """The process that asked is no longer there."""


class Nursery:
    """Runs the control, then the mutants."""

    def __init__(self, batch: Batch, folder: Path, parent: Connection) -> None:
        self.batch = batch
        self.folder = folder
        self.parent = parent
        self.expected: dict[bytes, bytes] = {}
        self.children: list[Child] = []
        self.trials = 0
        self.end = time.monotonic() + (float("inf") if batch.seconds is None else batch.seconds)

    def _fork(
        self, texts: Mapping[str, str], waiting: Sequence[Task], limits: Mapping[tuple[str, str], float], noting: bool
    ) -> Child:
        self.trials += 1
        trial = Trial(texts, self.folder / f"trial-{self.trials}", noting)
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        arguments = (theirs, self.batch.setup, trial, self.expected, os.getpid())
        process = context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        now = time.monotonic()
        child = Child(process, ours, deque(waiting), limits, now, now + START_SECONDS)
        self.children.append(child)
        return child

    def _events(self) -> Iterator[tuple[Child, Loaded | Answer | Lost]]:
        """Yield what at least one child has to say."""
        nearest = min(child.deadline for child in self.children)
        at = {child.connection: child for child in self.children}
        timeout = max(0.0, nearest - time.monotonic())
        ready = multiprocessing.connection.wait([*at, self.parent], timeout)  # type: ignore[list-item]
        if self.parent in ready:
            raise Gone
        for connection in ready:
            child = at[connection]  # type: ignore[index]
            try:
                yield child, child.connection.recv()
            except (EOFError, OSError):
                yield child, Lost("crash", f"the process died: {child.ending()}")
        for child in at.values():
            if child.connection not in ready and time.monotonic() > child.deadline:
                yield child, Lost("timeout", f"no answer within {child.limit:.0f} s")

    def _end(self, child: Child) -> None:
        child.stop()
        self.children.remove(child)

    def control(self) -> Control:
        """Run every check on the unchanged text, each in any process that is free."""
        waiting = deque(self.batch.tasks)
        found = Control()
        ranks: dict[int, int] = {}
        for _ in range(min(self.batch.jobs, len(waiting))):
            self._fork(self.batch.texts, (), {}, noting=True)
        while self.children:
            for child, event in list(self._events()):
                if isinstance(event, Answer):
                    self._note(found, event, child.task, ranks[id(child)])
                elif isinstance(event, Lost) or event.error:
                    text = event.text if isinstance(event, Lost) else event.error
                    task = f"{child.task.probe} {child.task.case.id}: " if child.task else "loading the backend: "
                    found.failures.append(task + text)
                    self._end(child)
                    continue
                if waiting:
                    ranks[id(child)], task_next = waiting.popleft()
                    child.give(task_next)
                else:
                    self._end(child)
        if waiting:
            found.failures.append(f"{len(waiting)} checks were not run")
        if not found.failures and not any(ran.launched for ran in found.ran):
            found.failures.append("no check launched a kernel: the backend is not made of these files")
        return found

    def _note(self, found: Control, answer: Answer, task: Task | None, rank: int) -> None:
        assert task is not None
        check = answer.check
        self.expected.update(answer.expected)
        self.parent.send(check)
        if check.status is Status.PASS:
            found.ran.append(Ran(task, rank, check.seconds, answer.launched))
        elif check.status in (Status.FAIL, Status.ERROR):
            found.failures.append(f"{check.probe} {check.case}: {check.message}")
        else:
            found.left_out += 1

    def mutants(self, control: Control) -> int:
        """Try the mutants and send a verdict for each; return how many were not begun in time."""
        gc.freeze()
        files = {name: Source(text, self.batch.stems[name]) for name, text in self.batch.texts.items()}
        reach = runs(files)
        limits = {
            (ran.task.probe, ran.task.case.id): probes()[ran.task.probe].timeout + PATIENCE * ran.seconds
            for ran in control.ran
        }
        # drawn by lot, so that what is not begun in time differs from the rest by chance alone
        waiting = deque(random.Random(self.batch.setup.seed).sample(self.batch.mutants, len(self.batch.mutants)))
        while self.children or (waiting and time.monotonic() < self.end):
            while waiting and len(self.children) < self.batch.jobs and time.monotonic() < self.end:
                mutant = waiting.popleft()
                tasks = order(control.ran, (mutant.module, mutant.function), reach)
                if not tasks:
                    self.parent.send(Verdict(mutant.id))
                    continue
                texts = {**self.batch.texts, mutant.module: files[mutant.module].apply(mutant.edit)}
                child = self._fork(texts, tasks, limits, noting=False)
                child.verdict = Verdict(mutant.id)
            if self.children:
                for child, event in list(self._events()):
                    self._judge(child, event)
        return len(waiting)

    def _judge(self, child: Child, event: Loaded | Answer | Lost) -> None:
        verdict = child.verdict
        assert verdict is not None
        if isinstance(event, Lost):
            verdict.killed_by, verdict.check, verdict.message = event.why, child.task, event.text
        elif isinstance(event, Loaded):
            if event.error:
                verdict.killed_by, verdict.message = "exception", event.error
        else:
            self._weigh(verdict, event.check, child.task)
        if verdict.killed_by is None and child.waiting:
            child.give(child.waiting.popleft())
            return
        verdict.seconds = time.monotonic() - child.started
        self._end(child)
        self.parent.send(verdict)

    @staticmethod
    def _weigh(verdict: Verdict, check: Check, task: Task | None) -> None:
        if check.status is Status.FAIL:
            verdict.killed_by = "exception" if RAISED.match(check.message or "") else "check"
            verdict.check, verdict.clause, verdict.message = task, check.clause, check.message or ""
            verdict.checks += 1
        elif check.status is Status.PASS:
            verdict.checks += 1
        else:
            # an error of the harness kills nothing
            text = check.message or check.reason or ""
            verdict.inconclusive.append(f"{check.probe} {check.case}: {check.status.value}: {text}")

    def close(self) -> None:
        """End every process."""
        for child in list(self.children):
            self._end(child)


def nurse(parent: Connection, batch: Batch) -> None:
    """Run a batch and send back a check for each of the control's, the control, and a verdict for each mutant."""
    torch.set_num_threads(1)
    probes()
    early = sorted(batch.texts.keys() & sys.modules.keys())
    if early:
        parent.send(Control(failures=[f"imported with the harness: {', '.join(early)}"]))
        parent.send(Finished())
        return
    with tempfile.TemporaryDirectory(prefix="mutants-", dir=os.environ["TRITON_CACHE_DIR"]) as folder:
        nursery = Nursery(batch, Path(folder), parent)
        try:
            control = nursery.control()
            parent.send(control)
            parent.send(Finished(0 if control.failures else nursery.mutants(control)))
        except (Gone, BrokenPipeError, KeyboardInterrupt):
            return
        finally:
            nursery.close()
