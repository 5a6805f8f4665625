"""Compiling launches in processes of their own, with a time limit, and reading what ptxas says."""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import resource
import signal
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from triton import knobs
from triton.compiler import make_backend
from triton.runtime.cache import get_cache_key

from .record import TARGET, Launch

SHARED_LIMIT = 227 * 1024
"""Bytes of shared memory that one block may have on compute capability 9.0."""


@dataclass(frozen=True)
class Usage:
    """What ptxas reports about one kernel: registers a thread, and bytes a thread of the rest."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int

    @property
    def spilled(self) -> int:
        """Return the bytes of spills; a stack frame without spills is local memory too."""
        return self.spill_stores + self.spill_loads or self.stack


@dataclass(frozen=True)
class Build:
    """One launch, compiled or not.

    Attributes:
        seconds: CPU seconds, so that a busy machine does not fail a kernel.
        error: why there is no kernel; None where there is.
    """

    launch: Launch
    seconds: float
    usage: Usage | None = None
    shared: int = 0
    error: str | None = None


_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


def parse_usage(log: str) -> Usage:
    """Read the output of ``ptxas -v`` on one kernel; functions that it calls count too."""
    frames = [tuple(map(int, found)) for found in _FRAME.findall(log)]
    registers = [int(found) for found in _REGISTERS.findall(log)]
    if not frames or not registers:
        raise ValueError(f"ptxas reported no resource usage: {log!r}")
    stacks, stores, loads = zip(*frames, strict=True)
    return Usage(max(registers), sum(stores), sum(loads), sum(stacks))


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _compile(launch: Launch, limit: int, results: Connection) -> None:
    """Run in a process of its own; sends (seconds, usage, shared bytes, error)."""
    os.setsid()  # so that ptxas ends with it
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    log = io.StringIO()
    usage, shared, error = None, 0, None
    with tempfile.TemporaryDirectory() as cache:
        knobs.cache.dir = cache
        knobs.nvidia.dump_ptxas_log = True
        try:
            with redirect_stdout(log):
                shared = launch.compile().metadata.shared
            usage = parse_usage(log.getvalue())
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}".strip()
    results.send((_cpu_seconds(), usage, shared, error))


@dataclass
class _Running:
    index: int
    process: BaseProcess
    started: float


def build_all(launches: Sequence[Launch], *, jobs: int, limit: int) -> list[Build]:
    """Compile all launches, ``jobs`` at a time; a compile that needs more than ``limit`` CPU seconds is an error."""
    if launches:
        # What Triton reads once a process (its own sources, ptxas's version) is read here, before the forks.
        first = launches[0]
        get_cache_key(first.source(), make_backend(TARGET), first.options, {})
    processes = multiprocessing.get_context("fork")
    pending = deque(range(len(launches)))
    running: dict[Connection, _Running] = {}
    builds: dict[int, Build] = {}
    while pending or running:
        while pending and len(running) < jobs:
            index = pending.popleft()
            receive, send = processes.Pipe(duplex=False)
            process = processes.Process(target=_compile, args=(launches[index], limit, send))
            process.start()
            send.close()
            running[receive] = _Running(index, process, time.monotonic())
        ready = set(wait(list(running), timeout=1.0))
        for receive, run in list(running.items()):
            hung = time.monotonic() - run.started > 5 * limit
            if receive in ready or hung:
                del running[receive]
                builds[run.index] = _collect(launches[run.index], receive, run.process, limit, hung)
    return [builds[index] for index in range(len(launches))]


def _collect(launch: Launch, results: Connection, process: BaseProcess, limit: int, hung: bool) -> Build:
    too_long = f"took more than {limit} s"
    try:
        if hung and not results.poll():
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGKILL)
            return Build(launch, float(limit), error=too_long)
        seconds, usage, shared, error = results.recv()
    except EOFError:
        process.join()
        out_of_time = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        died = too_long if out_of_time else f"the compiler ended with exit code {process.exitcode}"
        return Build(launch, float(limit) if out_of_time else 0.0, error=died)
    finally:
        results.close()
        process.join()
    # ptxas may have been stopped by the limit, which reads as a failure of its own
    return Build(launch, seconds, usage, shared, too_long if seconds > limit else error)
