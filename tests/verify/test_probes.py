"""The catalogue and the probes name each other, and every probe is documented and distinct."""

import ast
from pathlib import Path

import pytest

from deltaproof.contracts.clauses import CLAUSES
from deltaproof.hazards import HAZARDS
from deltaproof.ops.registry import operator
from deltaproof.verify.probe import Plan, probes

HEADINGS = ("What it does", "What it shows", "How it judges", "What it cannot see")
OPERATOR = operator("gated_delta_rule")


def test_hazards_and_probes_name_each_other():
    catalogue = {(hazard.name, probe) for hazard in HAZARDS.values() for probe in hazard.probes}
    declared = {(hazard, probe.name) for probe in probes().values() for hazard in probe.hazards}
    assert catalogue == declared


@pytest.mark.parametrize("name", sorted(probes()))
class TestEachProbe:
    def test_is_documented_under_the_four_headings(self, name):
        path = Path("deltaproof/verify/probes") / f"{name}.py"
        docstring = ast.get_docstring(ast.parse((Path(__file__).parents[2] / path).read_text()))
        lines = docstring.splitlines()
        assert [line for line in lines if line in HEADINGS] == list(HEADINGS)

    def test_names_clauses_of_the_contract(self, name):
        probe = probes()[name]
        assert {probe.clause, *probe.clauses} <= set(CLAUSES)
        assert probe.clause in probe.clauses

    @pytest.mark.parametrize("tier", ["smoke", "full"])
    @pytest.mark.parametrize(("device", "interpreted"), [("cpu", False), ("cuda", False), ("cpu", True)])
    def test_names_its_cases_apart_and_keeps_to_the_form(self, name, tier, device, interpreted):
        probe = probes()[name]
        for form in probe.forms:
            cases = list(probe.cases(Plan(OPERATOR, form, tier, device, interpreted)))
            assert len({case.id for case in cases}) == len(cases)
            assert {case.form for case in cases} <= {form}
