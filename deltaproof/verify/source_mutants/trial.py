"""The process of one mutant: it loads the backend from the mutant's text and runs the checks it is given.

It is forked from a process that has imported all but the kernels. What a mutant writes over dies with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from deltaproof.reports.model import Check, Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.expected import Reference
from deltaproof.verify.mutants.remembered import RememberedReference
from deltaproof.verify.probe import Context, Probe, probes
from deltaproof.verify.source_mutants.calls import Function
from deltaproof.verify.source_mutants.replace import Launches, Replacement
from deltaproof.verify.target import Target
from deltaproof.verify.worker import Setup, Task

MEMORY_TRIES = 4
MEMORY_PAUSE = 3.0
"""Seconds until a check that found too little memory is made again: mutants beside it give theirs back."""
POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Trial:
    """What one process runs.

    Attributes:
        texts: text of the modules to replace, by name.
        folder: a folder of its own for them.
        noting: whether to send back which kernels a check launched, and what was expected of it.
    """

    texts: Mapping[str, str]
    folder: Path
    noting: bool = False


@dataclass(frozen=True)
class Loaded:
    """The backend is loaded; ``error`` says why not."""

    error: str = ""


@dataclass(frozen=True)
class Answer:
    """What came of one check."""

    check: Check
    launched: frozenset[Function] = frozenset()
    expected: Mapping[bytes, bytes] = field(default_factory=dict)


class SharedReference(RememberedReference):
    """A reference that starts from what other processes have worked out, and tells what it added."""

    def __init__(self, base: Reference, known: Mapping[bytes, bytes]) -> None:
        super().__init__(base)
        self._known = dict(known)
        self._told = set(known)

    def news(self) -> dict[bytes, bytes]:
        """Return what was added since the last time."""
        added = {key: value for key, value in self._known.items() if key not in self._told}
        self._told |= added.keys()
        return added


def steady(context: Context, probe: Probe, case: Case) -> Check:
    """Make one check; again after a while where the machine's memory is taken by others."""
    for _ in range(MEMORY_TRIES - 1):
        check = execute(context, probe, case)
        waits = check.status in (Status.SKIPPED, Status.ERROR) and "memory" in f"{check.reason} {check.message}"
        if not waits or context.device != "cuda":
            return check
        torch.cuda.empty_cache()
        time.sleep(MEMORY_PAUSE)
    return execute(context, probe, case)


def _silence() -> None:
    """Send what the process prints nowhere: compilers and interpreters say much about broken kernels."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _next(connection: Connection, parent: int) -> Task | None:
    """Return the next task, or None where there is no more, or nobody who could ask."""
    try:
        while not connection.poll(POLL_SECONDS):
            if os.getppid() != parent:
                return None
        task: Task | None = connection.recv()
        return task
    except EOFError:
        return None


def serve(connection: Connection, setup: Setup, trial: Trial, known: Mapping[bytes, bytes], parent: int) -> None:
    """Load the backend from the trial's texts, then answer tasks until there are no more."""
    _silence()
    torch.set_num_threads(setup.threads)
    launches = Launches()
    try:
        Replacement(trial.texts, trial.folder).install()
        if trial.noting:
            launches.install()
        context = Context(Target.load(setup.spec, setup.operator), setup.seed, setup.device)
    except Exception as error:
        connection.send(Loaded(f"{type(error).__name__}: {error}"))
        return
    reference = None
    if context.target.operator.family == "delta_rule":
        # its rounding model takes longer than most kernels
        reference = SharedReference(Reference(context.target.operator), known)
        context.reference = reference
    connection.send(Loaded())
    while (task := _next(connection, parent)) is not None:
        launches.take()
        check = steady(context, probes()[task.probe], task.case)
        news: dict[str, Any] = {"launched": launches.take()} if trial.noting else {}
        if trial.noting and reference is not None:
            news["expected"] = reference.news()
        connection.send(Answer(check, **news))
