"""The result of a check, as data: what every report format renders and what the JSON schema describes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


class Status(str, Enum):
    """What came of one check."""

    PASS = "pass"
    FAIL = "fail"
    UNSUPPORTED = "unsupported"
    SKIPPED = "skipped"
    WAIVED = "waived"
    ERROR = "error"
    NOT_RUN = "not-run"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Location(_Model):
    """Where in a tensor a check saw its worst value; only what applies is set."""

    tensor: str
    row: int | None = Field(default=None, description="batch row, sequence, pool slot or decode row")
    token: int | None = None
    head: int | None = None
    chunk: int | None = None
    element: tuple[int, ...] | None = Field(default=None, description="index in the whole tensor")
    slot: int | None = None

    def __str__(self) -> str:
        parts = [f"{name} {value}" for name, value in self if name not in ("tensor", "element") and value is not None]
        element = "" if self.element is None else "[" + ", ".join(map(str, self.element)) + "]"
        return f"{self.tensor}{element}" + (f" ({', '.join(parts)})" if parts else "")


class Check(_Model):
    """One probe on one case of one form."""

    probe: str
    case: str
    form: str
    status: Status
    clause: str
    hazard: str | None = Field(default=None, description="name of the hazard in the catalogue")
    message: str = ""
    location: Location | None = None
    value: str | None = None
    expected: str | None = None
    observed: float | None = Field(default=None, description="largest error, absolute")
    bound: float | None = Field(default=None, description="bound at the same place")
    ratio: float | None = Field(default=None, description="largest observed / bound")
    repeat: str | None = Field(default=None, description="command that repeats this check alone")
    reason: str | None = Field(default=None, description="why unsupported, skipped or waived")
    url: str | None = None
    expiry: str | None = None
    seconds: float = 0.0


class BackendInfo(_Model):
    """What was verified."""

    name: str
    version: str
    source: str
    conventions: dict[str, str | list[str]]
    unsupported: dict[str, str] = Field(default_factory=dict)
    ran: dict[str, list[str]] = Field(
        default_factory=dict, description="form, or form and ' backward' -> kernels that an adapter saw run"
    )


class VerifyReport(_Model):
    """A whole run of ``deltaproof verify``."""

    schema_name: Literal["deltaproof.verify"] = "deltaproof.verify"
    schema_version: int = SCHEMA_VERSION
    complete: bool = Field(default=True, description="false: the run did not reach its end; checks are missing")
    operator: str
    contract_version: int
    backend: BackendInfo
    device: str
    tier: str
    seed: int
    command: str
    machine: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    seconds: float = 0.0
    checks: list[Check] = Field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Return how many checks ended in each status; every status is present."""
        found = Counter(check.status for check in self.checks)
        return {status.value: found.get(status, 0) for status in Status}

    def of(self, *statuses: Status) -> Iterable[Check]:
        """Yield the checks that ended in one of ``statuses``."""
        return (check for check in self.checks if check.status in statuses)
