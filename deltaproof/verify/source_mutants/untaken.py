"""Shared code that one operator never runs: what its campaign leaves out, because no launch of its compiles it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from deltaproof.verify.source_mutants.generate import SourceMutant
from deltaproof.verify.source_mutants.source import sources


@dataclass(frozen=True)
class Untaken:
    """A function, or branches, in the files that operators share.

    Attributes:
        operator: who never runs it.
        function: "FILE:FUNCTION" that it never calls; empty for a branch of any function.
        condition: an ``if`` on constants, as its text, that is always ``holds`` for the operator.
        holds: see ``condition``.
    """

    operator: str
    function: str = ""
    condition: str = ""
    holds: bool = False

    def __str__(self) -> str:
        return f"{self.operator}: {self.function or f'{self.condition} is {self.holds}'}"

    def meets(self, mutant: SourceMutant) -> bool:
        """Return whether a mutant is in code that the operator never runs."""
        if self.function:
            return mutant.place == self.function
        dead = _branches(self.condition, not self.holds).get(mutant.module, ())
        return any(start <= mutant.edit.start and mutant.edit.end <= end for start, end in dead)


@cache
def _branches(condition: str, taken: bool) -> dict[str, tuple[tuple[int, int], ...]]:
    """Return where, in the files that operators share, the code lies that runs only where a condition is ``taken``."""
    found = {}
    for module, source in sources().items():
        if source.stem.startswith("common/"):
            nodes = [node for node in ast.walk(source.tree) if isinstance(node, ast.If)]
            bodies = [node.body if taken else node.orelse for node in nodes if source.segment(node.test) == condition]
            found[module] = tuple((source.span(body[0])[0], source.span(body[-1])[1]) for body in bodies if body)
    return found


def _untaken() -> Iterator[Untaken]:
    # with a gate a head A_log is always there, and the gate has no lower bound
    for condition, holds in (("PER_CHANNEL", False), ("RATE", True), ("LOWER == 0.0", True)):
        yield Untaken("gated_delta_rule", condition=condition, holds=holds)
    for function in ("strength_gradients_kernel", "channel_gate_gradients_kernel"):
        yield Untaken("gated_delta_rule", function=f"common/triton_channel_gradients:{function}")
    for condition, holds in (("PER_CHANNEL", True), ("not PER_CHANNEL", False)):
        yield Untaken("kda", condition=condition, holds=holds)
    # the last two have code of their own in its chunk kernels
    for function in ("log_gate", "gate_gradients_kernel", "normalize_kernel"):
        yield Untaken("kda", function=f"common/triton_inputs:{function}")
    yield Untaken("kda", function="common/triton_inverse:invert_16")


UNTAKEN = tuple(_untaken())


def taken(operator: str, mutants: Sequence[SourceMutant]) -> list[SourceMutant]:
    """Return the mutants in code that an operator runs."""
    dead = [entry for entry in UNTAKEN if entry.operator == operator]
    return [mutant for mutant in mutants if not any(entry.meets(mutant) for entry in dead)]


def stale(operator: str, mutants: Sequence[SourceMutant], entries: Iterable[Untaken] = UNTAKEN) -> list[str]:
    """Return the entries of an operator that meet none of all mutants."""
    own = (entry for entry in entries if entry.operator == operator)
    return [f"{entry}: no such mutant" for entry in own if not any(entry.meets(mutant) for mutant in mutants)]
