"""The kill matrix as text and JSON."""

from __future__ import annotations

import io
import json

from rich.console import Console

from deltaproof.reports.mutants import CheatRow, MatrixReport, MutantRow, ProbeScore
from deltaproof.reports.mutants_text import print_matrix


def row(name: str, **changes: object) -> MutantRow:
    base = {
        "mutant": name,
        "hazard": "padding-slot-address",
        "form": "decode",
        "story": "flashinfer #2810: -1 used as an address",
        "own_probe": "slots",
        "killed_by_own": True,
        "control_passes": True,
        "clause": "P2",
        "killed_by": ["slots", "poison"],
        "naive_survives": True,
    }
    return MutantRow(**{**base, **changes})


def report(*rows: MutantRow, fooled: bool = False, control_failures: tuple[str, ...] = ()) -> MatrixReport:
    killed = sum(one.killed for one in rows)
    return MatrixReport(
        operator="gated_delta_rule",
        seed=0,
        score=killed / len(rows),
        killed=killed,
        total=len(rows),
        by_probe={"slots": ProbeScore(killed=killed, total=len(rows))},
        naive_survivors=sum(one.naive_survives for one in rows),
        rows=list(rows),
        cheats=[
            CheatRow(cheat="thief", what="steals", fooled=fooled, verdicts={"chunk": "pass" if fooled else "fail"})
        ],
        control_failures=list(control_failures),
        seconds=61.0,
    )


def text(found: MatrixReport) -> str:
    file = io.StringIO()
    print_matrix(found, Console(file=file, width=160))
    return file.getvalue()


def test_a_killed_mutant_names_its_clause_and_the_other_probes() -> None:
    line = next(line for line in text(report(row("raw"))).splitlines() if line.startswith("raw"))
    assert line.split() == ["raw", "decode", "padding-slot-address", "slots", "killed", "P2", "lets", "live", "poison"]


def test_a_living_mutant_is_named_with_its_story() -> None:
    shown = text(report(row("raw"), row("tame", killed_by_own=False, clause=None, killed_by=["poison"])))
    assert "ALIVE" in shown
    assert "tame lives  flashinfer #2810" in shown
    assert "1 of 2 mutants killed (50%)" in shown


def test_a_kill_without_a_control_does_not_count() -> None:
    found = report(row("raw", control_passes=False), control_failures=("slots decode: case: wrong",))
    assert found.killed == 0
    assert "no control" in text(found)
    assert "control fails  slots decode: case: wrong" in text(found)


def test_cheats_and_the_naive_suite_are_told() -> None:
    shown = text(report(row("raw"), row("seen", naive_survives=False)))
    assert "cheat  thief steals: caught (chunk fail)" in shown
    assert "lets 1 of them live" in shown
    assert "thief steals: FOOLED (chunk pass)" in text(report(row("raw"), fooled=True))


def test_the_naive_suite_is_described_in_its_operators_words() -> None:
    found = report(row("raw"))
    assert "a naive suite lets 1 of them live" in text(found)
    told = found.model_copy(update={"naive_suite": "zero windows, one dtype"})
    assert "a naive suite (zero windows, one dtype) lets 1 of them live" in text(told)


def test_the_json_has_the_score_and_every_row() -> None:
    data = json.loads(report(row("raw")).model_dump_json())
    assert (data["score"], data["killed"], data["total"]) == (1.0, 1, 1)
    assert data["by_probe"] == {"slots": {"killed": 1, "total": 1}}
    assert data["schema_name"] == "deltaproof.mutants"
    assert data["rows"][0]["mutant"] == "raw"
