"""``[tool.deltaproof.audit]``, and which rules are chosen."""

from __future__ import annotations

import pytest

from deltaproof.audit.registry import chosen
from deltaproof.audit.rule import Rule
from deltaproof.audit.settings import Settings, load
from deltaproof.contracts.errors import ContractError
from tests.audit.trees import lay_out


def settings(tmp_path, table):
    return load(lay_out(tmp_path, {"pyproject.toml": f"[tool.deltaproof.audit]\n{table}\n"}))


def test_every_key_is_read(tmp_path):
    found = settings(
        tmp_path,
        'select = ["HZ1"]\nignore = ["HZ105"]\npreview = true\nexclude = ["gen"]\nfail-on = "high"\n'
        'baseline = "audit/base.json"',
    )
    assert found == Settings(
        select=("HZ1",),
        ignore=("HZ105",),
        preview=True,
        exclude=("gen",),
        fail_on="high",
        baseline=tmp_path / "audit" / "base.json",
        source=tmp_path / "pyproject.toml",
    )


def test_the_nearest_file_around_the_root_counts(tmp_path):
    settings(tmp_path, "preview = true")
    lay_out(tmp_path, {"a/b/x.py": "", "c/pyproject.toml": "[project]\n"})
    assert load(tmp_path / "a" / "b").preview is True
    assert load(tmp_path / "c").preview is False


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("selct = []", r"expected keys out of select, .* \(nearest: select\), got 'selct'"),
        ("fail_on = 'high'", r"\(nearest: fail-on\), got 'fail_on'"),
        ("select = 'HZ101'", r"select: expected a list of strings, got 'HZ101'"),
        ("ignore = [1]", r"ignore: expected a list of strings, got \[1\]"),
        ("preview = 1", r"preview: expected true or false, got 1"),
        ("fail-on = 'grave'", r"fail-on: expected one of critical, high, .*, got 'grave'"),
        ("baseline = ['x']", r"baseline: expected a string"),
    ],
)
def test_a_wrong_key_type_or_value_is_named(tmp_path, table, message):
    with pytest.raises(ContractError, match=message) as error:
        settings(tmp_path, table)
    assert "pyproject.toml: [tool.deltaproof.audit]" in str(error.value)


@pytest.mark.parametrize("text", ["[tool", "[tool.deltaproof]\naudit = 3", "tool = 1"])
def test_a_file_that_is_no_toml_or_has_no_table_there_is_named(tmp_path, text):
    with pytest.raises(ContractError, match=r"pyproject\.toml"):
        load(lay_out(tmp_path, {"pyproject.toml": text}))


def rule(rule_code, rule_name, ready):
    class Some(Rule):
        code, name, stable = rule_code, rule_name, ready

    return Some()


RULES = (rule("HZ101", "unmasked-load", True), rule("HZ102", "unmasked-store", False), rule("HZ302", "padding", True))


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({}, ["HZ101", "HZ302"]),
        ({"preview": True}, ["HZ101", "HZ102", "HZ302"]),
        ({"select": ["HZ1"]}, ["HZ101"]),
        ({"select": ["hz1"], "preview": True}, ["HZ101", "HZ102"]),
        ({"select": ["padding, HZ101"]}, ["HZ101", "HZ302"]),
        ({"select": ["ALL"], "ignore": ["HZ10"]}, ["HZ302"]),
        ({"ignore": ["unmasked-load"]}, ["HZ302"]),
    ],
)
def test_rules_are_chosen_by_code_beginning_or_name(options, codes):
    assert [found.code for found in chosen(RULES, **options)] == codes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": ["unmaskd-load"]}, r"--select: .*\(nearest: unmasked-load"),
        ({"ignore": ["HZ999"]}, r"--ignore: expected a rule's code or name"),
        ({"select": ["HZ102"]}, r"--select: expected a stable rule, or --preview with it, got HZ102"),
        ({"select": ["HZ9"]}, r"--select: expected a rule's code or name"),
    ],
)
def test_a_key_that_is_no_rules_is_refused(options, message):
    with pytest.raises(ContractError, match=message):
        chosen(RULES, **options)
