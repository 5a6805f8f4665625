"""A checked report for people: a table in a terminal, the same without colour in a pipe, and Markdown."""

from __future__ import annotations

import re
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltaproof.reports.claims import CLAIM_VERDICTS, CheckedClaim, ClaimsReport, ClaimVerdict
from deltaproof.reports.visible import visible

STYLES: dict[ClaimVerdict, str] = {
    "no_claim": "dim",
    "no_such_file": "bold red",
    "not_executable": "yellow",
    "grounded": "green",
    "moved": "cyan",
    "absent": "red",
}
_SHOWN = 100


def sentence(report: ClaimsReport) -> str:
    """Return the one-line summary."""
    findings = "finding quotes" if report.findings == 1 else "findings quote"
    counts = {verdict: report.count(verdict) for verdict in reversed(CLAIM_VERDICTS)}
    parts = [f"{count} {verdict}" for verdict, count in counts.items() if count]
    text = f"{report.quoting} of {report.findings} {findings} code that exists"
    text += f" ({', '.join(parts)})" if parts else ""
    repeats = sum(claim.repeats is not None for claim in report.claims)
    if repeats:
        text += f"; {repeats} repeat{'s' * (repeats == 1)} an earlier one"
    fates = [claim.fixed for claim in report.claims if claim.fixed]
    if report.fixed_root is not None:
        said = [f"{fates.count(fate)} {fate}" for fate in ("stands", "code changed", "code gone") if fate in fates]
        text += f"; in the newer tree: {', '.join(said) or 'nothing to compare'}"
    return text


def _cut(text: str, most: int = _SHOWN) -> str:
    text = visible(" ".join(text.split()))
    return text if len(text) <= most else text[: most - 3] + "..."


def _place(claim: CheckedClaim) -> str:
    if claim.line is None:
        return claim.path
    more = f"-{claim.end_line}" if claim.end_line not in (None, claim.line) else ""
    return f"{claim.path}:{claim.line}{more}"


def _verdict(claim: CheckedClaim) -> str:
    at = f" at {claim.found.line}" if claim.found and claim.found.line != claim.line else ""
    return f"{claim.verdict}{at}"


def print_claims(report: ClaimsReport, console: Console) -> None:
    """Print a row for every claim, its repeats counted, then the summary."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("place", overflow="fold")
    table.add_column("severity", no_wrap=True)
    table.add_column("verdict", overflow="fold", min_width=14)
    if report.fixed_root is not None:
        table.add_column("newer tree", no_wrap=True)
    table.add_column("quote", overflow="fold")
    table.add_column("why", overflow="fold")
    for first, *repeats in report.groups():
        times = f" (x {1 + len(repeats)})" if repeats else ""
        cells = [
            Text(f"{first.index}"),
            Text(_cut(_place(first), 200) + times),
            Text(_cut(first.severity or "", 20)),
            Text(_verdict(first), style=STYLES[first.verdict]),
            *([Text(first.fixed or "")] if report.fixed_root is not None else []),
            Text(_cut(first.quote, 80)),
            Text(_cut(first.why, 160), style="dim"),
        ]
        table.add_row(*cells)
    if report.claims:
        console.print(table)
        _line(console)
    if report.misread_as:
        _line(console, f"the report's text had been decoded as {report.misread_as}; it was read as UTF-8")
    if report.prose:
        _line(console, f"{report.prose} paragraph{'s' * (report.prose > 1)} of prose left alone")
    if not report.claims:
        _line(console, "no claim in a known format was found")
    _line(console, Text(sentence(report), style="bold"))


def _line(console: Console, text: str | Text = "") -> None:
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def render(report: ClaimsReport) -> str:
    """Return the report as plain text, 160 columns wide."""
    buffer = StringIO()
    print_claims(report, Console(file=buffer, width=160, color_system=None, legacy_windows=False))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def render_json(report: ClaimsReport) -> str:
    """Return the report as JSON."""
    return report.model_dump_json(indent=2) + "\n"


def _prose(text: str) -> str:
    """Return text in which nothing is read as a tag, a link, a cell border or emphasis."""
    return re.sub(r"([\\<>*|_`\[\]&])", r"\\\1", _cut(text, 200))


def _code(text: str) -> str:
    text = _cut(text).replace("|", "\\|")
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    pad = " " if "`" in (text[0], text[-1]) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def render_markdown(report: ClaimsReport) -> str:
    """Return the report as GitHub-flavoured Markdown."""
    newer = report.fixed_root is not None
    lines = [f"# Claims of {_prose(report.report)}", "", f"**{sentence(report)}**", ""]
    lines += [f"- format: {report.format}", f"- tree: {_code(report.root)}"]
    if newer:
        lines.append(f"- newer tree: {_code(report.fixed_root or '')}")
    if report.misread_as:
        lines.append(f"- the report's text had been decoded as {report.misread_as}; it was read as UTF-8")
    lines += [f"- paragraphs of prose left alone: {report.prose}", ""]
    if report.claims:
        head = ["#", "place", "severity", "verdict", *(["newer tree"] if newer else []), "quote", "why"]
        rows = [head, ["---"] * len(head)]
        for first, *repeats in report.groups():
            also = f" (also {', '.join(f'#{claim.index}' for claim in repeats)})" if repeats else ""
            fate = [first.fixed or ""] if newer else []
            place, severity = _code(_place(first)) + also, _prose(first.severity or "")
            rows.append(
                [str(first.index), place, severity, _verdict(first), *fate, _code(first.quote), _prose(first.why)]
            )
        lines += ["| " + " | ".join(cells) + " |" for cells in rows]
        lines += ["", "## Verdicts", ""]
        lines += [f"- {verdict}: {meaning} ({report.count(verdict)})" for verdict, meaning in CLAIM_VERDICTS.items()]
    return "\n".join(lines).rstrip() + "\n"
