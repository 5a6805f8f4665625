"""The process a backend runs in: it takes one task at a time and answers with a check.

A backend that crashes or hangs takes this process with it, and so does one that breaks the GPU's context; the runner
sees that and starts another.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from deltaproof.reports.model import BackendInfo, Check
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, probes
from deltaproof.verify.target import Target


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know once.

    Attributes:
        spec: the backend as the user named it.
        operator: name of the operator.
        device: "cpu" or "cuda".
        seed: seed of the run.
        threads: torch threads of this process.
        given: fields set in every case, as FIELD=VALUE.
    """

    spec: str
    operator: str
    device: str
    seed: int
    threads: int
    given: tuple[str, ...] = ()

    @property
    def interpreted(self) -> bool:
        """Return whether the backend can only run in Triton's interpreter there: our own kernels on the CPU."""
        return self.device == "cpu" and self.spec in ("triton", "hopper")


@dataclass(frozen=True)
class Task:
    """One probe on one case."""

    probe: str
    case: Case


def describe(target: Target) -> BackendInfo:
    """Return what the report says of the backend."""
    conventions = target.backend.conventions
    return BackendInfo(
        name=target.backend.name,
        version=str(target.backend.version),
        source=target.source,
        conventions={
            "layouts": [layout.value for layout in conventions.layouts],
            "gate": conventions.gate.value + (", float32" if conventions.float32_gates else ""),
            "padding": conventions.padding.value,
        },
        unsupported=dict(target.backend.unsupported),
    )


def ran(target: Target) -> dict[str, list[str]]:
    """Return the kernels that a backend saw run so far, by form; empty where it does not look."""
    return {form: list(names) for form, names in getattr(target.backend, "ran", {}).items()}


def device_is_sound() -> bool:
    """Return whether the GPU still answers this process: after an illegal access every later call fails too."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def serve(connection: Connection, setup: Setup) -> None:
    """Load the backend, say what it is, then answer tasks until the other end closes."""
    torch.set_num_threads(setup.threads)
    try:
        if setup.interpreted:
            # here alone: source mutants load the kernels' files anew
            from deltaproof.ops.common.triton_interpreter import switch_on

            switch_on()
        context = Context(Target.load(setup.spec, setup.operator), setup.seed, setup.device, setup.given)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    # what is loaded stays: the collector need not go through it again and again
    gc.freeze()
    connection.send(describe(context.target))
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        check: Check = execute(context, probes()[task.probe], task.case)
        sound = setup.device != "cuda" or device_is_sound()
        connection.send((check, sound, ran(context.target)))
        if not sound:
            return
