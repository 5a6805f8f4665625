"""The table of `deltaproof verify --scenario serving`, as data."""

from __future__ import annotations

from enum import Enum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCENARIO_SCHEMA_VERSION = 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Verdict(str, Enum):
    """What a row shows."""

    SAME = "same"
    """A clean adapter: every request has the tokens that it has alone."""
    CHANGED = "changed"
    """Some request has other tokens."""
    UNSEEN = "unseen"
    """A fault on the plain pool that changed no token."""
    STOPPED = "stopped"
    """A fault on our pool that changed no token: there was nothing for it to hit."""
    NAMED = "named"
    """A fault on our pool that changed no token that was handed out, and was refused or reported by name."""
    SKIPPED = "skipped"
    """This machine cannot run the row."""


class Divergence(_Model):
    """The first answer that differs from the request's alone."""

    request: str
    token: int = Field(description="which of the request's answers, from 0")
    step: int = Field(description="the engine's step that gave it")


class Row(_Model):
    """One strategy, adapter and pool, on the requests of one seed."""

    strategy: str
    adapter: str
    pool: Literal["plain", "ours"]
    seed: int
    clean: bool = Field(description="whether the adapter has no fault")
    verdict: Verdict
    requests: int = Field(default=0, description="requests served to their end")
    unserved: int = Field(
        default=0, description="requests that stayed and were not served, since the run was ended before"
    )
    changed: int = Field(default=0, description="requests whose tokens differ from the request run alone")
    right: int = Field(default=0, description="requests whose answers are all right")
    accuracy: float | None = Field(default=None, description="right / requests")
    touched: int = Field(
        default=0,
        description="slots that a step changed though a request or the prefix cache held them and no row had them",
    )
    first: Divergence | None = None
    named: str | None = Field(default=None, description="what was refused or reported, in its own words")
    stopped_at: int | None = Field(
        default=None, description="the step at which the pool reported a stray write to a slot"
    )
    steps: int = Field(default=0, description="steps that were run")
    prefix_hits: int = Field(default=0, description="requests that started from a kept prefix")
    seconds: float = Field(default=0.0, description="processor time")


class Interval(_Model):
    """A share of the requests, with Wilson's interval at 95 %."""

    share: float
    low: float
    high: float


class Group(_Model):
    """The rows of all seeds of one strategy, adapter and pool."""

    strategy: str
    adapter: str
    pool: Literal["plain", "ours"]
    clean: bool
    verdict: Verdict
    requests: int
    unserved: int
    changed: int
    changed_share: Interval | None
    accuracy: Interval | None
    touched: int
    first: Divergence | None
    first_seed: int | None
    named: str | None


class AdapterInfo(_Model):
    """What an adapter is."""

    name: str
    what: str
    clean: bool
    story: str = Field(default="", description="where its fault was seen in public")


class ScenarioReport(_Model):
    """A whole run of ``deltaproof verify --scenario serving``."""

    schema_name: Literal["deltaproof.scenario"] = "deltaproof.scenario"
    schema_version: int = SCENARIO_SCHEMA_VERSION
    scenario: Literal["serving"] = "serving"
    seeds: list[int]
    requests_a_seed: int
    strategies: dict[str, str]
    adapters: list[AdapterInfo]
    alone_accuracy: Interval = Field(description="of the requests run alone, all seeds")
    clean_rows_changed: int = Field(description="rows of clean adapters in which a request's tokens changed")
    faults_seen: int = Field(description="faults that changed a request's tokens in some row of the plain pool")
    faults_total: int
    ours_rows_changed: int = Field(description="rows of our pool in which a request's tokens changed")
    groups: list[Group]
    rows: list[Row]
    python: str
    torch: str
    seconds: float = 0.0

    @property
    def held(self) -> bool:
        """Return whether clean rows are clean, every fault shows on the plain pool, and none on ours."""
        clean = self.clean_rows_changed == 0 and self.ours_rows_changed == 0
        return clean and self.faults_seen == self.faults_total
