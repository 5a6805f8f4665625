"""Mutants that change nothing, or nothing that the contract promises: looked at by hand, each with its reason.

They count as survivors, and are printed with the reason. An entry names text, not an ordinal, so that it holds while
the file around it changes; one that meets no mutant, or a mutant that a check kills, is stale and fails the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deltaproof.verify.source_mutants.generate import SourceMutant


@dataclass(frozen=True)
class Equivalent:
    """Mutants that were looked at.

    Attributes:
        place: "FILE:FUNCTION", as their ids begin.
        reason: why no check can see it.
        operator: name of their operator; empty for any.
        before: what stands there, on one line; empty for anything.
        after: what the mutant puts there; empty for anything.
        device: where this holds: "cpu" (the interpreter), "cuda", or empty for both.
    """

    place: str
    reason: str
    operator: str = ""
    before: str = ""
    after: str = ""
    device: str = ""

    def __str__(self) -> str:
        parts = [self.place, *([self.operator] if self.operator else [])]
        change = f": {self.before or '…'} → {self.after or '…'}" if self.before or self.after else ""
        return ":".join(parts) + change

    def meets(self, mutant: SourceMutant) -> bool:
        """Return whether this entry is about a mutant."""
        asked = ((self.operator, mutant.operator), (self.before, mutant.before), (self.after, mutant.after))
        return self.place == mutant.place and all(mine in ("", its) for mine, its in asked)


INTERPRETED_ONLY = "only the interpreter runs this branch"
ONE_THREAD = "the interpreter runs a program in one thread and programs one after another, so nothing can race"

EQUIVALENT: tuple[Equivalent, ...] = (
    Equivalent(
        "common/triton_language:_dot_fp32", "the interpreter multiplies fp32 operands as they are", device="cpu"
    ),
    Equivalent("common/triton_language:stored", INTERPRETED_ONLY, device="cuda"),
    Equivalent("common/triton_language:dot", INTERPRETED_ONLY, "drop-upcast", device="cuda"),
    Equivalent(
        "common/triton_recurrence_backward:recurrence_backward_kernel", ONE_THREAD, "drop-barrier", device="cpu"
    ),
)


def reason_of(mutant: SourceMutant, device: str, entries: Iterable[Equivalent] = EQUIVALENT) -> str:
    """Return why a mutant cannot be killed on a device, or an empty text."""
    met = (entry.reason for entry in entries if entry.meets(mutant) and entry.device in ("", device))
    return next(met, "")


def stale(
    mutants: Sequence[SourceMutant],
    killed: Iterable[SourceMutant],
    device: str,
    entries: Iterable[Equivalent] = EQUIVALENT,
) -> list[str]:
    """Return what is wrong with the entries: those that meet none of all mutants, or one that was killed."""
    dead = list(killed)
    found = []
    for entry in entries:
        if not any(entry.meets(mutant) for mutant in mutants):
            found.append(f"{entry}: no such mutant")
        elif entry.device in ("", device):
            found += [f"{entry}: {mutant.id} is killed" for mutant in dead if entry.meets(mutant)]
    return found
