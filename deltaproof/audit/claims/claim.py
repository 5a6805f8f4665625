"""What a reader hands on: one claim of a report, before it is checked."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Claim:
    """One claim as the report makes it.

    Attributes:
        path: as written; empty if the report names none.
        first: first line that it names; None if it names none.
        last: last line that it names.
        severity: lower case; None if it states none.
        title: rule or heading.
        excerpts: fenced blocks of code that it quotes, the proposed fix left out.
        prose: its own words, the proposed fix left out; code between backticks in them is quoted.
        nothing: why it claims nothing ("unable to examine"); empty where it does.
        duplicate: whether the report itself calls it a duplicate.
        prompt: whether it words a comment above it again, for a program.
        also: whether it says of other lines what the claim before it says.
        at: line of the report where it begins.
    """

    path: str
    first: int | None = None
    last: int | None = None
    severity: str | None = None
    title: str = ""
    excerpts: list[str] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)
    nothing: str = ""
    duplicate: bool = False
    prompt: bool = False
    also: bool = False
    at: int = 0


@dataclass
class Reading:
    """A report as one reader saw it.

    Attributes:
        format: name of the format.
        claims: in the order of the report.
        prose: paragraphs that belong to no claim.
    """

    format: str
    claims: list[Claim]
    prose: int
