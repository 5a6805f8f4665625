"""Going on with a run that did not try every mutant: its verdicts hold as long as nothing that made them changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from deltaproof.contracts.errors import ContractError
from deltaproof.reports.source_mutants import EarlierRun, SourceMutantRow, SourceMutantsReport
from deltaproof.verify.source_mutants.generate import SourceMutant

PACKAGE = Path(__file__).resolve().parents[2]
ROOMS = ("backends", "contracts", "operators", "ops", "verify")
"""Folders of the package whose text decides what a check says."""
REASONS = tuple(
    f"verify/source_mutants/{name}.py"
    for name in ("equivalent", "equivalent_conv", "equivalent_interpreted", "reviewed")
)
"""Reasons say why a mutant lives, not whether it does."""
SAME = ("operator", "backend", "device", "tier", "forms", "probes", "cases", "seed", "sources")
PACKAGES = ("torch", "triton", "numpy")


def digest(package: Path = PACKAGE) -> str:
    """Return a digest of all source that decides whether a mutant is killed."""
    found = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (package / room).rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if name not in REASONS:
            found.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def read(path: Path) -> SourceMutantsReport:
    """Return the report of an earlier run.

    Raises:
        ContractError: the file is none.
    """
    try:
        return SourceMutantsReport.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        what = str(error).splitlines()[0]
        raise ContractError("resume", "a JSON result of --source-mutants", f"{path} ({what})") from None


def verdicts_of(
    earlier: SourceMutantsReport, now: dict[str, object], chosen: list[SourceMutant]
) -> dict[str, SourceMutantRow]:
    """Return the rows of an earlier run by the mutant's id, of those that are chosen now.

    Args:
        earlier: what it reported.
        now: what the present run says of itself, as fields of its report.
        chosen: the mutants to try.

    Raises:
        ContractError: the runs differ in what decides a verdict.
    """
    for name in SAME:
        was = getattr(earlier, name)
        if was != now[name]:
            raise ContractError("resume", f"a run with {name} {now[name]!r}", repr(was))
    versions = now["versions"]
    assert isinstance(versions, dict)
    for name in PACKAGES:
        if earlier.versions.get(name) != versions.get(name):
            raise ContractError("resume", f"a run with {name} {versions.get(name)}", str(earlier.versions.get(name)))
    if earlier.control_failures:
        raise ContractError("resume", "a run whose unchanged kernels pass", earlier.control_failures[0])
    ids = {item.id for item in chosen}
    return {row.mutant: row for row in earlier.rows if row.mutant in ids}


def history(earlier: SourceMutantsReport, taken: int) -> list[EarlierRun]:
    """Return the runs that came before, oldest first."""
    run = EarlierRun(
        command=earlier.command, machine=earlier.machine, commit=earlier.commit, seconds=earlier.seconds, verdicts=taken
    )
    return [*earlier.earlier, run]
