"""The kill matrix of `deltaproof verify --mutants`, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MUTANTS_SCHEMA_VERSION = 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MutantRow(_Model):
    """One mutant and what became of it."""

    mutant: str
    hazard: str = Field(description="name of the hazard in the catalogue")
    form: str
    story: str = Field(description="the public bug it is the twin of")
    own_probe: str = Field(description="the probe that must catch it")
    killed_by_own: bool
    control_passes: bool = Field(description="whether the unbroken backend passes the same probe")
    clause: str | None = Field(None, description="clause named by the own probe's first failure")
    named_hazard: str | None = Field(None, description="hazard named by the own probe's first failure")
    case: str | None = Field(None, description="case of the own probe's first failure")
    message: str = ""
    killed_by: list[str] = Field(
        default_factory=list, description="probes that catch it, others by their first few cases"
    )
    naive_survives: bool = Field(description="whether the naive suite lets it live")
    seconds: float = Field(0.0, description="processor time over all probes")

    @property
    def killed(self) -> bool:
        """Return whether it counts as killed."""
        return self.killed_by_own and self.control_passes


class ProbeScore(_Model):
    """How many of the mutants that are a probe's own it catches."""

    killed: int
    total: int


class CheatRow(_Model):
    """One backend that tries to fool the harness."""

    cheat: str
    what: str
    fooled: bool = Field(description="whether it got through with a form")
    verdicts: dict[str, str] = Field(description="by form, how its first check that did not pass ended; pass if none")


class MatrixReport(_Model):
    """A whole run of ``deltaproof verify --mutants``."""

    schema_name: Literal["deltaproof.mutants"] = "deltaproof.mutants"
    schema_version: int = MUTANTS_SCHEMA_VERSION
    operator: str
    seed: int
    score: float = Field(description="killed / total")
    killed: int
    total: int
    by_probe: dict[str, ProbeScore]
    naive_suite: str = Field("", description="what the naive suite is made of")
    naive_survivors: int = Field(description="mutants that the naive suite lets live")
    rows: list[MutantRow]
    cheats: list[CheatRow]
    control_failures: list[str] = Field(description="checks that the unbroken backend does not pass")
    seconds: float = 0.0
