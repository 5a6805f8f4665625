"""The audit as JSON, as `docs/schemas/audit-1.json` describes it."""

from __future__ import annotations

import json

from deltaproof.reports.audit import AuditReport


def render(report: AuditReport) -> str:
    """Return the whole report, in ASCII: what is quoted from source cannot reach a terminal as it is."""
    text = json.dumps(report.model_dump(mode="json", by_alias=True), indent=2)
    return text.replace("\x7f", "\\u007f") + "\n"
