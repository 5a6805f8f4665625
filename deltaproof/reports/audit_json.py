"""The audit as JSON, as `docs/schemas/audit-1.json` describes it."""

from __future__ import annotations

from deltaproof.reports.audit import AuditReport


def render(report: AuditReport) -> str:
    """Return the whole report."""
    return report.model_dump_json(indent=2, by_alias=True) + "\n"
