"""Somebody else's report, checked against the source: what `deltaproof audit --claims` finds, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

CLAIMS_SCHEMA_VERSION = 1
ClaimVerdict = Literal["no_claim", "no_such_file", "not_executable", "grounded", "moved", "absent"]
CLAIM_VERDICTS: dict[ClaimVerdict, str] = {
    "no_claim": "the report says nothing that could be checked",
    "no_such_file": "the tree has no such file",
    "not_executable": "a docstring, a comment, a string, a test or a self-test",
    "grounded": "the quoted code stands where the report says",
    "moved": "the quoted code stands elsewhere in the file",
    "absent": "the file does not hold the code as the report quotes it",
}
"""In the order in which they are tried: the first that applies is the verdict."""
FixedVerdict = Literal["stands", "code changed", "code gone"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Found(_Model):
    """Where the quoted code stands."""

    path: str = Field(description="relative to the root")
    line: int


class CheckedClaim(_Model):
    """One claim of the report, and what the source says to it."""

    index: int = Field(description="from 1, in the order of the report")
    path: str = Field(description="as the report has it")
    line: int | None = Field(description="first line that the claim names")
    end_line: int | None = Field(default=None, description="last line that the claim names")
    severity: str | None = Field(description="as the report has it, in lower case")
    title: str = ""
    quote: str = Field(description="the quoted code that decides; empty if the claim quotes none")
    verdict: ClaimVerdict
    found: Found | None
    why: str
    fixed: FixedVerdict | None = Field(default=None, description="what the newer tree did to the quoted code")
    repeats: int | None = Field(default=None, description="index of the earlier claim that this one repeats")


class ClaimsReport(_Model):
    """A report that was checked against a tree."""

    schema_name: Literal["deltaproof.claims"] = "deltaproof.claims"
    schema_version: int = CLAIMS_SCHEMA_VERSION
    report: str
    root: str
    fixed_root: str | None = None
    format: str = Field(description="format of the report; 'none' if it has no known one")
    misread_as: str | None = Field(default=None, description="codec that the report's UTF-8 had been read with")
    claims: list[CheckedClaim]
    prose: int = Field(description="paragraphs that belong to no claim and were left alone")

    def count(self, verdict: ClaimVerdict) -> int:
        """Return how many claims have a verdict."""
        return sum(claim.verdict == verdict for claim in self.claims)

    @property
    def findings(self) -> int:
        """How many claims say something."""
        return len(self.claims) - self.count("no_claim")

    @property
    def quoting(self) -> int:
        """How many claims quote code that exists and runs."""
        return self.count("grounded") + self.count("moved")

    def groups(self) -> list[list[CheckedClaim]]:
        """Return the claims with their repeats; a repeat with another verdict stands by itself."""
        found: dict[tuple[int, ClaimVerdict], list[CheckedClaim]] = {}
        for claim in self.claims:
            found.setdefault((claim.repeats or claim.index, claim.verdict), []).append(claim)
        return list(found.values())


def exit_code(report: ClaimsReport) -> int:
    """Return 1 if a claim is absent or names a file that is missing, else 0."""
    return int(any(claim.verdict in ("absent", "no_such_file") for claim in report.claims))
