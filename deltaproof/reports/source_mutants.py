"""What became of the mutants of the kernels' source, `deltaproof verify --source-mutants`, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SOURCE_MUTANTS_SCHEMA_VERSION = 1
BAR = 0.85
"""Share of the mutants that must be killed."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SourceMutantRow(_Model):
    """One slip in one kernel and what became of it."""

    mutant: str = Field(description="FILE:FUNCTION:MUTATION:ORDINAL")
    mutation: str = Field(description="the kind of slip")
    hazard: str | None = Field(default=None, description="name of the hazard it mirrors, where the catalogue has one")
    function: str = Field(description="FILE:FUNCTION")
    file: str
    line: int
    before: str
    after: str
    killed_by: Literal["check", "exception", "crash", "timeout"] | None = Field(
        default=None, description="check: a comparison failed; the others: the call raised, the process died or hung"
    )
    probe: str | None = Field(default=None, description="probe of the first check that failed")
    case: str | None = None
    clause: str | None = None
    message: str = ""
    checks: int = Field(default=0, description="checks that ran to an end")
    inconclusive: list[str] = Field(default_factory=list, description="checks that neither passed nor failed")
    reason: str = Field(default="", description="why it cannot be killed, from the reviewed list")
    note: str = Field(default="", description="what else is known of one that lives")
    seconds: float = 0.0


class Score(_Model):
    """How many of some mutants were killed."""

    killed: int
    total: int


class EarlierRun(_Model):
    """A run whose verdicts another one took over."""

    command: str
    machine: dict[str, str]
    commit: str | None = None
    seconds: float
    verdicts: int = Field(description="verdicts that were taken over, from it and from those before it")


class SourceMutantsReport(_Model):
    """A run of ``deltaproof verify --source-mutants``, or as much of it as was done when it was cut off."""

    schema_name: Literal["deltaproof.source-mutants"] = "deltaproof.source-mutants"
    schema_version: int = SOURCE_MUTANTS_SCHEMA_VERSION
    complete: bool = Field(default=True, description="false: the run did not reach its end; verdicts are missing")
    operator: str = ""
    backend: str = ""
    device: str = ""
    tier: str = ""
    forms: list[str] = Field(default_factory=list, description="forms chosen; empty for all")
    probes: list[str] = Field(default_factory=list, description="probes chosen; empty for all")
    cases: list[str] = Field(default_factory=list, description="cases chosen; empty for all")
    patterns: list[str] = Field(default_factory=list, description="mutants chosen; empty for all")
    sample: int | None = Field(default=None, description="how many were drawn, by the seed; null for all")
    seed: int = 0
    jobs: int = 1
    generated: int = Field(default=0, description="mutants that the kernel files have, in code that the operator runs")
    left_out: int = Field(default=0, description="mutants in shared code that this operator never runs")
    not_begun: int = Field(default=0, description="mutants that were chosen and not tried to an end")
    total: int = Field(description="mutants that were tried")
    killed: int
    killed_by_check: int = Field(description="killed by a comparison, not by an exception, a crash or a hang")
    equivalent: int = Field(description="mutants that live and have a reason in the reviewed list")
    score: float = Field(description="killed / total")
    score_without_equivalent: float = Field(description="killed / (total - equivalent)")
    bar: float = Field(default=BAR, description="the score that is asked for")
    by_mutation: dict[str, Score]
    by_function: dict[str, Score]
    rows: list[SourceMutantRow]
    control_passed: int = Field(default=0, description="checks that the unchanged kernels pass")
    control_left_out: int = Field(default=0, description="checks unsupported or skipped with the unchanged kernels")
    control_failures: list[str] = Field(default_factory=list, description="what the unchanged kernels do not pass")
    stale: list[str] = Field(default_factory=list, description="entries of the reviewed list that do not hold")
    command: str = ""
    machine: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    sources: str = Field(default="", description="digest of the kernels, the backends and the harness")
    seconds: float = 0.0
    earlier: list[EarlierRun] = Field(default_factory=list, description="runs that this one went on with, oldest first")

    @property
    def held(self) -> bool:
        """Return whether the run is whole, its control passes, the list holds and enough mutants are killed."""
        sound = self.complete and not self.control_failures and not self.stale
        return sound and self.total > 0 and self.score >= self.bar
