"""The audit as GitHub workflow commands: each finding is an annotation of its line."""

from __future__ import annotations

from deltaproof.hazards import Severity
from deltaproof.reports.audit import AuditReport, Finding
from deltaproof.reports.audit_summary import advice, verdict
from deltaproof.reports.visible import visible

LEVELS: dict[Severity, str] = {"critical": "error", "high": "error", "medium": "warning", "low": "notice"}


def _data(text: str) -> str:
    """Return what may follow ``::``: no line can begin in it, and with it no second command."""
    return visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Return what may stand as a property's value."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _command(finding: Finding) -> str:
    properties = {
        "file": finding.path,
        "line": str(finding.line),
        "endLine": str(finding.end_line),
        "title": f"{finding.code} {finding.name} ({finding.severity}, {finding.verdict})",
    }
    # GitHub takes columns only where a finding is on one line.
    if finding.line == finding.end_line:
        properties["col"] = str(finding.column + 1)
    values = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{LEVELS[finding.severity]} {values}::{_data(advice(finding))}"


def render(report: AuditReport) -> str:
    """Return one workflow command a finding, one notice a path that was not analysed, and the verdict."""
    lines = [_command(finding) for finding in report.findings]
    lines += [
        f"::notice file={_property(item.path)},title=not analysed::{_data(item.reason)}" for item in report.not_analysed
    ]
    return "\n".join([*lines, visible(verdict(report))]) + "\n"
