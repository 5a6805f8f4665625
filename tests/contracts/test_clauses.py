"""The clauses of the contract are complete, consistent data."""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError

import pytest

from deltaproof.contracts.clauses import CHAPTERS, CLAUSES, CONTRACT_VERSION, FORMS, clause
from deltaproof.contracts.errors import ContractError

VERSION_1 = [
    "S0",
    "S1",
    "S2",
    "S3",
    "S4",
    "T1",
    "T2",
    "T3",
    "P1",
    "P2",
    "P3",
    "P4",
    "P5",
    "P6",
    "P7",
    "M1",
    "M2",
    "M3",
    "G1",
    "G2",
    "G3",
    "I1",
    "I2",
    "I3",
    "N1",
    "N2",
    "D1",
    "D2",
    "E1",
]


def test_contract_version_1_has_these_clauses_in_this_order():
    assert CONTRACT_VERSION == 1
    assert list(CLAUSES) == VERSION_1


def test_codes_and_names_are_unique():
    listed = [entry for chapter in CHAPTERS.values() for entry in chapter]
    assert len({entry.code for entry in listed}) == len(listed) == len(CLAUSES)
    assert len({entry.name for entry in listed}) == len(listed)


@pytest.mark.parametrize("entry", CLAUSES.values(), ids=lambda entry: entry.code)
def test_every_clause_is_complete(entry):
    assert CLAUSES[entry.code] is entry
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", entry.name)
    assert entry.title.endswith(".") and "\n" not in entry.title
    assert entry.text.endswith(".") and entry.text == entry.text.strip()
    assert entry.example is None or entry.example.strip()
    assert entry.forms and set(entry.forms) <= set(FORMS)
    assert tuple(form for form in FORMS if form in entry.forms) == entry.forms


@pytest.mark.parametrize("entry", CLAUSES.values(), ids=lambda entry: entry.code)
def test_every_clause_that_is_mentioned_exists(entry):
    mentioned = re.findall(r"\b[A-Z]\d\b", f"{entry.text} {entry.example or ''}")
    assert set(mentioned) <= set(CLAUSES)


def test_slot_clauses_bind_the_pool_forms_alone():
    bound = {code: entry.forms for code, entry in CLAUSES.items() if code.startswith("P")}
    assert bound.pop("P7") == ("decode",)
    assert set(bound.values()) == {("decode", "prefill")}


def test_gradients_are_promised_by_the_sequence_forms_alone():
    assert {entry.forms for code, entry in CLAUSES.items() if code.startswith("G")} == {("chunk", "recurrent")}


def test_the_worked_example_of_the_function_is_right():
    state = 0.0
    for value, beta, gate in ((3.0, 1.0, 0.0), (5.0, 0.5, math.log(0.5))):
        state *= math.exp(gate)
        state += beta * (value - state)
    assert state == pytest.approx(3.25)
    assert f"= {state:.2f} and o = {state:.2f}" in CLAUSES["S0"].example


@pytest.mark.parametrize("code", ["P1", "p1", " P1 "])
def test_a_clause_is_found_by_its_code(code):
    assert clause(code) is CLAUSES["P1"]


def test_an_unknown_code_names_what_was_expected_and_what_came():
    with pytest.raises(ContractError, match=r"^clause: expected a clause code of contract version 1 .*P6.*, got 'P9'$"):
        clause("P9")


def test_clauses_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        CLAUSES["P1"].title = "another promise"
    with pytest.raises(TypeError):
        CLAUSES["P1"] = CLAUSES["P2"]
