"""The report as GitHub-flavoured Markdown."""

from __future__ import annotations

import re

from deltaproof.reports.model import Check, Status, VerifyReport
from deltaproof.reports.summary import LEGEND, MEANING, broken, failure, heading, matrix, reasons, title, verdict


def _prose(text: str) -> str:
    """Return ``text`` in one line in which nothing is read as a tag, a cell border or emphasis."""
    return re.sub(r"([\\<*|])", r"\\\1", " ".join(text.split()))


def _fence(text: str, least: int) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(least, longest + 1)


def _code(text: str) -> str:
    fence = _fence(text, 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _block(text: str, language: str = "text") -> list[str]:
    fence = _fence(text, 3)
    return [fence + language, text.rstrip(), fence, ""]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines] + [""]


def _matrix(report: VerifyReport) -> list[str]:
    found = matrix(report)
    rows = [
        [_prose(probe), *(f"**{_prose(str(cell))}**" if cell.failed else _prose(str(cell)) for cell in cells)]
        for probe, cells in found.rows
    ]
    return [*_table(["probe", *map(_prose, found.forms)], rows), LEGEND, ""]


def _failure(check: Check) -> list[str]:
    lines = [f"### {check.status.value}: {_prose(title(check))}", ""]
    if check.message:
        lines += _block(check.message)
    lines += [f"- {label}: {_prose(text)}" for label, text in failure(check)]
    lines.append("")
    return [*lines, *_block(check.repeat, "sh")] if check.repeat else lines


def _without_verdict(report: VerifyReport) -> list[str]:
    groups = [
        f"- {group.status.value}, {len(group.checks)} × {_prose(group.reason)} ({_prose(', '.join(group.probes))})"
        for group in reasons(report)
    ]
    declared = [f"- declared: {_code(name)}: {_prose(why)}" for name, why in report.backend.unsupported.items()]
    return ["## Not analysed", "", *groups, *declared, ""] if groups or declared else []


def _ran(report: VerifyReport) -> list[str]:
    lines = [f"- {form}: {', '.join(map(_code, names))}" for form, names in report.backend.ran.items()]
    return ["## Kernels seen", "", *lines, ""] if lines else []


def _broken(report: VerifyReport, alike: int | None) -> list[str]:
    """Return failures and errors; of those of one probe, form, clause and hazard the first ``alike``."""
    lines: list[str] = []
    kinds: dict[tuple[str | None, ...], list[Check]] = {}
    for check in broken(report):
        kinds.setdefault((check.status.value, check.probe, check.form, check.clause, check.hazard), []).append(check)
    for checks in kinds.values():
        for check in checks[:alike]:
            lines += _failure(check)
        if more := checks[len(checks) if alike is None else alike :]:
            lines += [f"And {len(more)} more of the same probe, form, clause and hazard, in the JSON result.", ""]
    return lines


def render(report: VerifyReport, *, alike: int | None = None) -> str:
    """Return the heading, the matrix, failures and errors, the counts and the reasons of what was not analysed.

    Every failure is shown, or with ``alike`` that many of those of one probe, form, clause and hazard.
    """
    counts = report.counts()
    lines = [f"# deltaproof verify: {_prose(report.backend.name)}", "", f"**{verdict(report)}**", ""]
    lines += [f"- {label}: {_code(text) if label == 'command' else _prose(text)}" for label, text in heading(report)]
    lines.append("")
    if report.checks:
        lines += ["## Probes and forms", "", *_matrix(report)]
    if broken(report):
        lines += ["## Failures and errors", "", *_broken(report, alike)]
    lines += ["## Counts", ""]
    lines += _table(["status", "checks", "meaning"], [[s.value, str(counts[s.value]), MEANING[s]] for s in Status])
    lines += _without_verdict(report)
    lines += _ran(report)
    return "\n".join(lines).rstrip() + "\n"
