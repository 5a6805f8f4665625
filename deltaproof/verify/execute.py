"""Running one probe on one case and turning what it saw into a check."""

from __future__ import annotations

import copy
import shlex
import time
import traceback
from collections.abc import Sequence

import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.reports.model import Check, Status
from deltaproof.verify.case import Case
from deltaproof.verify.observation import BackendFault, HarnessError, Observation, Skipped, Unsupported
from deltaproof.verify.probe import Context, Probe


def repeat_command_for(
    operator: str, backend: str, device: str, probe: str, case: str, seed: int, given: Sequence[str] = ()
) -> str:
    """Return the command that repeats one check alone."""
    words = ["deltaproof", "verify", "--operator", operator, "--backend", backend, "--device", device]
    sets = [part for word in given for part in ("--set", word)]
    return shlex.join([*words, "--probe", probe, "--case", case, *sets, "--seed", str(seed)])


def execute(context: Context, probe: Probe, case: Case) -> Check:
    """Run one case; whatever the backend raises is a failed check, never the end of the run."""
    started = time.perf_counter()
    # the same reference: what it has computed for a case is kept
    context = copy.copy(context)
    context.target = context.target.in_form(case.form)
    base = {"probe": probe.name, "case": case.id, "form": case.form, "clause": probe.clause}
    hazard = probe.hazards[0] if probe.hazards else None

    def done(status: Status, **more: object) -> Check:
        return Check(**{**base, "status": status, "seconds": time.perf_counter() - started, **more})  # type: ignore[arg-type]

    repeat = repeat_command_for(
        context.target.operator.name, context.target.source, context.device, probe.name, case.id, context.seed,
        context.given,
    )  # fmt: skip
    reason = getattr(context.target.backend, "cannot_run", None)
    if reason is not None:
        return done(Status.SKIPPED, reason=reason)
    reason = context.target.backend.unsupported.get(probe.clause)
    if reason is not None:
        return done(Status.UNSUPPORTED, reason=f"{probe.clause}: {reason}")
    if not callable(getattr(context.target.backend, case.form, None)):
        return done(Status.UNSUPPORTED, reason=f"{case.form}: {context.target.backend.name} has no such form")
    try:
        seen = list(probe.run(case, context))
        if not seen:
            raise HarnessError(f"probe {probe.name} looked at nothing")
    except Unsupported as note:
        return done(Status.UNSUPPORTED, reason=str(note))
    except Skipped as note:
        return done(Status.SKIPPED, reason=str(note))
    except HarnessError as error:
        return done(Status.ERROR, message=str(error), repeat=repeat)
    except ContractError as error:
        text = f"a legal call was refused: {error}"
        return done(Status.FAIL, message=text, hazard=hazard, repeat=repeat)
    except torch.cuda.OutOfMemoryError as error:
        return done(Status.ERROR, message=f"out of memory: {error}", repeat=repeat)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"
        # what a mutant raises is a backend's fault, wherever its file lies
        own = "deltaproof/verify/" in last.filename and "deltaproof/verify/mutants/" not in last.filename
        # a kernel's illegal access shows wherever the harness next waits for the GPU
        own = own and not isinstance(error, BackendFault) and "CUDA error" not in str(error)
        status = Status.ERROR if own else Status.FAIL
        text = f"{type(error).__name__} at {where}: {error}"
        return done(status, message=text, hazard=hazard, repeat=repeat)
    return _summary(seen, done, repeat)


def _summary(seen: list[Observation], done: object, repeat: str) -> Check:
    failed = [item for item in seen if not item.ok]
    measured = [item for item in seen if item.ratio is not None]
    assert callable(done)
    if not failed:
        top = max(measured, key=lambda item: item.ratio or 0.0, default=None)
        more = {} if top is None else {"ratio": top.ratio, "observed": top.observed, "bound": top.bound}
        check: Check = done(Status.PASS, **more)
        return check
    worst = max(failed, key=lambda item: (item.ratio is None, item.ratio or 0.0))
    more_failed = f" ({len(failed)} of {len(seen)} observations failed)" if len(failed) > 1 else ""
    check = done(
        Status.FAIL,
        clause=worst.clause,
        hazard=worst.hazard,
        message=worst.message + more_failed,
        location=worst.location,
        value=worst.value,
        expected=worst.expected,
        observed=worst.observed,
        bound=worst.bound,
        ratio=worst.ratio,
        repeat=repeat,
    )
    return check
