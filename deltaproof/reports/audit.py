"""The result of an audit, as data: what every format renders and what the JSON schema describes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from deltaproof.hazards import Severity

AUDIT_SCHEMA_VERSION = 1
Verdict = Literal["reproduced", "proven", "likely", "possible"]
VERDICTS: dict[Verdict, str] = {
    "reproduced": "a probe ran and failed",
    "proven": "the source alone decides it",
    "likely": "the source shows it, unless something that is not in sight prevents it",
    "possible": "the source allows it",
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Evidence(_Model):
    """One quoted line and what it shows."""

    path: str
    line: int
    text: str
    why: str


class Edit(_Model):
    """One replacement of source text; lines from 1, columns from 0, the end exclusive."""

    line: int
    column: int
    end_line: int
    end_column: int
    text: str


class Fix(_Model):
    """What to do instead, and an edit where that is safe."""

    text: str
    edit: Edit | None = None


class Finding(_Model):
    """A place, a hazard, the evidence and a verdict."""

    code: str
    name: str
    path: str = Field(description="relative to the root")
    line: int
    end_line: int
    column: int
    function: str = Field(description="qualified name of the enclosing function; empty at module level")
    severity: Severity
    verdict: Verdict
    message: str
    fix: Fix
    evidence: list[Evidence]
    probe: str | None = Field(default=None, description="probe that makes the hazard happen")
    try_: str | None = Field(default=None, alias="try", serialization_alias="try", description="command that shows it")
    fingerprint: str = Field(description="the same while the statement and its function stay, wherever they move")
    preview: bool = False


class Dismissed(_Model):
    """A candidate that was considered and dropped."""

    code: str
    name: str
    path: str
    line: int
    function: str
    reason: str


class NotAnalysed(_Model):
    """A file that was not read, and why."""

    path: str
    reason: str


class Analysed(_Model):
    """What was looked at."""

    files: int = 0
    lines: int = 0
    functions: int = 0
    kernels: int = 0
    launches: int = 0


class AuditReport(_Model):
    """One run of the auditor."""

    schema_name: Literal["deltaproof.audit"] = "deltaproof.audit"
    schema_version: int = AUDIT_SCHEMA_VERSION
    root: str
    targets: list[str]
    rules: list[str] = Field(description="names of the rules that ran")
    findings: list[Finding]
    known: list[Finding] = Field(default_factory=list, description="findings that the baseline holds")
    compared: bool = Field(default=False, description="whether there was a baseline")
    suppressed: list[Dismissed] = Field(default_factory=list, description="findings with an ignore comment")
    dismissed: list[Dismissed] = Field(default_factory=list)
    analysed: Analysed
    not_analysed: list[NotAnalysed]
    checked: list[str] = Field(description="paths that were analysed")
    versions: dict[str, str]
    command: str
    seconds: float


def worst(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings by severity, then by verdict, path and line."""
    severities: list[Severity] = ["critical", "high", "medium", "low"]
    verdicts = list(VERDICTS)
    return sorted(
        findings,
        key=lambda item: (
            severities.index(item.severity),
            verdicts.index(item.verdict),
            item.path,
            item.line,
            item.code,
        ),
    )
