"""The parts of ``deltaproof check`` that read source: one public bug before and after its fix, and a whole package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from deltaproof.reports.audit import AuditReport

PACKAGES = {"fla-core": "fla"}
"""Published packages that a registered backend runs: distribution → backend."""
STORY = "unmasked-load"


def story(console: Console) -> bool:
    """Audit one public bug before and after its fix; return whether it is found before and gone after."""
    console.print("\n[bold]4. The source[/bold]: a gate loaded past its last channel (fla #1135), before and after")
    before, after = _audited("before"), _audited("after")
    for finding in before.findings:
        first = finding.evidence[0]
        console.print(f"found, line {finding.line}: {finding.name} ({finding.code})", highlight=False)
        console.print(f"  {first.text.strip()}", markup=False, highlight=False)
        for quote in finding.evidence[1:3]:
            console.print(f"  {quote.line}: {quote.text.strip()}   <- {quote.why}", markup=False, highlight=False)
    if [finding.name for finding in before.findings] != [STORY]:
        console.print(f"[bold red]not told[/bold red]: one {STORY} was expected before the fix")
        return False
    if after.findings:
        console.print("[bold red]not told[/bold red]: the fixed source still has findings")
        return False
    console.print("after the fix: nothing found")
    return True


def _audited(name: str) -> AuditReport:
    from deltaproof.audit import story as texts
    from deltaproof.audit.request import Request, carry_out
    from deltaproof.audit.settings import Settings

    path = Path(texts.__file__).with_name(f"{name}.py")
    # without a root each file is read alone: beside its fixed twin the bug would be found twice
    request = Request((path,), preview=True, cached=False, settings=Settings(), jobs=1)
    return carry_out(request)


def package(console: Console, spec: str) -> tuple[int, str | None]:
    """Audit ``NAME==VERSION``; return the exit code, and the backend to verify if that very version is importable.

    Raises:
        ContractError: the package cannot be fetched.
    """
    from deltaproof.audit.request import Request, audit_package, importable
    from deltaproof.reports.audit_summary import exit_code
    from deltaproof.reports.audit_text import print_audit

    console.print(f"\n[bold]1. The source[/bold] of {spec}: fetched, unpacked and read; nothing of it runs")
    report = audit_package(spec, Request(preview=True))
    print_audit(report, console)
    name = spec.partition("==")[0].strip().lower().replace("_", "-")
    backend = PACKAGES.get(name)
    console.print(f"\n[bold]2. The contract[/bold]: {spec} at run time")
    if Path(spec).is_file() or not importable(spec):
        console.print("not verified: this version is not installed here, and nothing is installed by a check")
        return exit_code(report), None
    if backend is None:
        console.print("not verified: no backend is registered for this package; see CONTRIBUTING.md")
        return exit_code(report), None
    return exit_code(report), backend
