"""What a reviewed reason is: a mutant that no check can kill, and why.

An entry names text, not an ordinal, so that it holds while the file around it changes; one that meets no mutant, or a
mutant that a check kills, is stale and fails the run.
"""

from __future__ import annotations

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
        within: part of the statement it is in, where the same text stands elsewhere too; empty for anything.
        device: where this holds: "cpu" (the interpreter), "cuda", or empty for both.
        campaign: the delta rule's operator in whose campaign this holds, where another runs the code otherwise; empty
            for any.
    """

    place: str
    reason: str
    operator: str = ""
    before: str = ""
    after: str = ""
    within: str = ""
    device: str = ""
    campaign: str = ""

    def __str__(self) -> str:
        parts = [self.place, *([self.operator] if self.operator else [])]
        change = f": {self.before or '…'} → {self.after or '…'}" if self.before or self.after else ""
        return ":".join(parts) + change + (f" in {self.within}" if self.within else "")

    def meets(self, mutant: SourceMutant) -> bool:
        """Return whether this entry is about a mutant."""
        asked = ((self.operator, mutant.operator), (self.before, mutant.before), (self.after, mutant.after))
        same = self.place == mutant.place and all(mine in ("", its) for mine, its in asked)
        return same and self.within in mutant.statement

    def counts_for(self, name: str) -> bool:
        """Return whether this entry is of the campaign of an operator."""
        return self.campaign in ("", name) and self.place.partition("/")[0] in ("common", name)


INTERPRETED_ONLY = "only the interpreter runs this branch"
ONE_THREAD = "the interpreter runs a program in one thread and programs one after another, so nothing can race"
PROMOTED = "the other operand is fp32, and Triton widens this one for the operation: the same exact value"
WIDE_ALREADY = "the other operand has 64 bits, and Triton widens this one for the operation"
FITS = "T fits into 32 bits, and every offset that this enters has a 64-bit operand besides"
TOO_LARGE = "differs only past 2 ** 31 elements of {}: more than a case in the interpreter can hold"
MORE_BITS = "the interpreter takes functions of bf16 in fp32; on a GPU they do not compile"
TOO_LONG = "differs only for a sequence of more than 128 chunks, longer than a case in the interpreter can be"
BELOW_SIGHT = "a gate below -64 leaves less than 1e-27 of a state or gradient, which no bound sees"
NO_ROW = "the rows that it adds or keeps are zero already: {}"
ROW_DROPPED = "rows behind the chunk's end hold what was read there, and {}; only a memory checker sees the read"
COLUMN_DROPPED = "columns behind the last one hold what was read there, and {}; only a memory checker sees the read"
TWICE = "strictly lower twice: {}"
