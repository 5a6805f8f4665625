"""What every format shows of a report: the matrix, the failures as labelled lines, the checks without a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from deltaproof.contracts.clauses import CLAUSES
from deltaproof.reports.model import Check, Status, VerifyReport

JUDGED = (Status.PASS, Status.FAIL)
UNJUDGED = tuple(status for status in Status if status not in JUDGED)
BROKEN = (Status.FAIL, Status.ERROR)

MEANING = {
    Status.PASS: "held",
    Status.FAIL: "broke a clause",
    Status.UNSUPPORTED: "declared so by the backend",
    Status.SKIPPED: "this environment cannot run it",
    Status.WAIVED: "set aside with a reason and an expiry",
    Status.ERROR: "the harness itself failed",
    Status.NOT_RUN: "never started",
}

LEGEND = "Largest error ÷ its bound stands after x. +n: checks without a verdict, counted below."


def number(value: float | None) -> str:
    """Return three significant digits, or an empty string for None."""
    return "" if value is None else f"{value:.3g}"


def worst_ratio(checks: Iterable[Check]) -> float | None:
    """Return the largest ratio, where NaN is worse than any number; None where no check has one."""
    ratios = [check.ratio for check in checks if check.ratio is not None]
    return max(ratios, key=lambda ratio: math.inf if math.isnan(ratio) else ratio, default=None)


@dataclass(frozen=True)
class Cell:
    """The checks of one probe on one form."""

    checks: tuple[Check, ...]

    def count(self, *statuses: Status) -> int:
        """Return how many of the cell's checks ended in one of ``statuses``."""
        return sum(check.status in statuses for check in self.checks)

    @property
    def failed(self) -> bool:
        return self.count(*BROKEN) > 0

    def __str__(self) -> str:
        if not self.checks:
            return "-"
        if not self.count(*JUDGED):
            return ", ".join(f"{n} {status.value}" for status in UNJUDGED if (n := self.count(status)))
        parts = [f"{self.count(Status.PASS)} pass"]
        if failed := self.count(Status.FAIL):
            parts.append(f"{failed} fail")
        if unjudged := self.count(*UNJUDGED):
            parts.append(f"+{unjudged}")
        if (ratio := worst_ratio(c for c in self.checks if c.status in JUDGED)) is not None:
            parts.append(f"x{ratio:.2g}")
        return " ".join(parts)


@dataclass(frozen=True)
class Matrix:
    """Rows are probes, columns are forms, both in the order in which the run met them."""

    forms: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def matrix(report: VerifyReport) -> Matrix:
    """Return the report's checks by probe and form."""
    forms = tuple(dict.fromkeys(check.form for check in report.checks))
    probes = dict.fromkeys(check.probe for check in report.checks)

    def cell(probe: str, form: str) -> Cell:
        return Cell(tuple(check for check in report.checks if (check.probe, check.form) == (probe, form)))

    return Matrix(forms, tuple((probe, tuple(cell(probe, form) for form in forms)) for probe in probes))


def heading(report: VerifyReport) -> list[tuple[str, str]]:
    """Return what was verified, how and where, as labelled lines."""
    backend = report.backend
    conventions = (
        f"{name} {value if isinstance(value, str) else ' or '.join(value)}"
        for name, value in backend.conventions.items()
    )
    lines = [
        ("operator", f"{report.operator}, contract version {report.contract_version}"),
        ("backend", f"{backend.name} {backend.version}, from {backend.source}"),
        ("conventions", "; ".join(conventions)),
        ("run", f"{report.tier} tier on {report.device}, seed {report.seed}, {report.seconds:.1f} s"),
        ("machine", ", ".join(f"{name} {value}" for name, value in report.machine.items())),
        ("versions", ", ".join(f"{name} {value}" for name, value in report.versions.items())),
        ("commit", report.commit or ""),
        ("command", report.command),
    ]
    return [(label, text) for label, text in lines if text]


def title(check: Check) -> str:
    """Return the probe, form and case of a check in one line."""
    return f"{check.probe} · {check.form} · {check.case}"


def failure(check: Check) -> list[tuple[str, str]]:
    """Return what is known of a failed check or a harness error as labelled lines, without message and command."""
    clause = CLAUSES.get(check.clause)
    lines = [
        ("clause", f"{check.clause}: {clause.title}" if clause else check.clause),
        ("hazard", check.hazard or ""),
        ("where", "" if check.location is None else str(check.location)),
        ("value", check.value or ""),
        ("expected", check.expected or ""),
        ("observed", "" if check.observed is None else f"error {number(check.observed)}"),
        ("bound", number(check.bound)),
        ("ratio", "" if check.ratio is None else f"{number(check.ratio)} (observed ÷ bound)"),
    ]
    return [(label, text) for label, text in lines if text]


def broken(report: VerifyReport) -> list[Check]:
    """Return the failures, then the harness errors."""
    return [check for status in BROKEN for check in report.of(status)]


@dataclass(frozen=True)
class Reason:
    """Checks that ended without a verdict for one and the same reason."""

    status: Status
    reason: str
    checks: tuple[Check, ...]

    @property
    def probes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(check.probe for check in self.checks))


def _reason(check: Check) -> str:
    text = " ".join((check.reason or check.message or "no reason given").split())
    if check.expiry:
        text += f" (until {check.expiry})"
    return f"{text} {check.url}" if check.url else text


def reasons(report: VerifyReport) -> list[Reason]:
    """Return the checks without a verdict grouped by status and reason; errors are shown as blocks instead."""
    groups: dict[tuple[Status, str], list[Check]] = {}
    for status in UNJUDGED:
        if status is not Status.ERROR:
            for check in report.of(status):
                groups.setdefault((status, _reason(check)), []).append(check)
    return [Reason(status, reason, tuple(checks)) for (status, reason), checks in groups.items()]


def verdict(report: VerifyReport) -> str:
    """Return one line with every count; what was not analysed is always part of it."""
    counts = report.counts()
    unjudged = ", ".join(f"{counts[status.value]} {status.value}" for status in UNJUDGED)
    cut = "" if report.complete else "not whole, the run did not reach its end: "
    return (
        f"{cut}{len(report.checks)} checks: {counts['pass']} pass, {counts['fail']} fail; "
        f"{sum(counts[status.value] for status in UNJUDGED)} without a verdict ({unjudged})"
    )
