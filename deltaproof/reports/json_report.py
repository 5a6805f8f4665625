"""The report as JSON, as `docs/schemas/verify-1.json` describes it."""

from __future__ import annotations

from deltaproof.reports.model import VerifyReport


def render(report: VerifyReport) -> str:
    """Return the whole report; a number that is not finite becomes null, since JSON has none."""
    return report.model_dump_json(indent=2) + "\n"
