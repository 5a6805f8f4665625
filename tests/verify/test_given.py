"""Fields set in every case: what is run, what is repeated, and what is refused."""

from __future__ import annotations

import json
import shlex

import pytest
from typer.testing import CliRunner

from deltaproof import ContractError
from deltaproof.cli.app import app
from deltaproof.ops.registry import operator
from deltaproof.verify.case import Case
from deltaproof.verify.conv.case import ConvCase
from deltaproof.verify.given import with_given
from deltaproof.verify.probe import probes
from deltaproof.verify.runner import Selection

SET = ("K=128", "V=128", "dtype=bfloat16", "gate_in_kernel=false", "chunk_size=64")


def tasks(given: tuple[str, ...], *probe: str, tier: str = "full", form: str = "chunk") -> list[Case]:
    selection = Selection(operator("gated_delta_rule"), (form,), probe, tier=tier, given=given)
    return [task.case for task in selection.tasks()[0]]


def test_every_case_has_what_was_set():
    cases = tasks(SET)
    assert len(cases) > 100
    assert {(case.K, case.V, case.dtype, case.gate_in_kernel, case.chunk_size) for case in cases} == {
        (128, 128, "bfloat16", False, 64)
    }


def test_cases_that_are_then_the_same_are_run_once():
    plain, given = tasks((), "values"), tasks(SET, "values")
    assert 0 < len(given) < len(plain)
    assert len({case.id for case in given}) == len(given)
    assert tasks((), "values") == plain, "what nobody set is as it was"


def test_a_case_that_is_no_longer_about_its_label_is_left_out():
    assert any(case.label == "wrong-shape" for case in tasks(("dtype=bfloat16",), "layouts"))
    assert not any(case.label == "wrong-shape" for case in tasks(SET, "layouts"))
    assert any(case.label == "wrong-shape" for case in tasks(("K=128", "V=64"), "layouts"))
    assert any(case.label == "parameters" for case in tasks((), "strides"))
    assert not any(case.label == "parameters" for case in tasks(SET, "strides"))
    assert any(case.label == "reflections" for case in tasks(("K=64",), "correlated_keys"))
    assert not any(case.label == "reflections" for case in tasks(SET, "correlated_keys"))
    assert all(probe.still_about(case) for probe in probes().values() for case in tasks((), "values"))


def test_a_case_that_keeps_states_inside_a_chunk_is_left_out():
    kept = [case.checkpoint_every for case in tasks((), "slots", form="prefill") if case.checkpoint_every]
    assert set(kept) == {32, 64}
    wider = [case for case in tasks(("chunk_size=64",), "slots", form="prefill") if case.checkpoint_every]
    assert wider and {case.checkpoint_every for case in wider} == {64}


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("K", "a whole number"),
        ("K=large", "a whole number"),
        ("dtype=float8", "one of float32, bfloat16, float16"),
        ("layout=rows", "one of k_first, v_first"),
        ("normalize=1", "true or false"),
        ("gates=zero", "FIELD=VALUE with a field of T, H, HV"),
    ],
)
def test_what_cannot_be_set_is_refused(word, text):
    with pytest.raises(ContractError, match="--set") as caught:
        with_given(Case("chunk"), [word])
    assert text in str(caught.value) and repr(word) in str(caught.value)


def test_another_family_has_its_own_fields():
    assert with_given(ConvCase("decode"), ["C=64", "layout=time_first"]) == ConvCase(
        "decode", C=64, layout="time_first"
    )
    with pytest.raises(ContractError, match="'K=128'"):
        with_given(ConvCase("decode"), ["K=128"])


WRONG = """
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend


class Narrow(TorchBackend):
    unsupported = {**TorchBackend.unsupported, "head_size:64": "128 alone", "head_size:other": "128 alone"}

    def chunk(self, call):
        o, state = super().chunk(call)
        return o * 1.01, state
"""


def test_a_failure_is_repeated_by_the_printed_command(tmp_path, monkeypatch):
    (tmp_path / "backends.py").write_text(WRONG)
    monkeypatch.chdir(tmp_path)
    words = ["verify", "--backend", "backends.py:Narrow", "--form", "chunk", "--probe", "values", "--format", "json"]
    plain = CliRunner().invoke(app, words)
    assert plain.exit_code == 2, "nothing was judged"
    sizes = ["--set", "K=128", "--set", "V=128", "--set", "T=5"]
    first = json.loads(CliRunner().invoke(app, [*words, *sizes]).stdout)
    failed = [check for check in first["checks"] if check["status"] == "fail"]
    repeat = shlex.split(failed[0]["repeat"])
    assert repeat[-8:-2] == sizes
    again = CliRunner().invoke(app, [*repeat[1:], "--format", "json"])
    ran = [check for check in json.loads(again.stdout)["checks"] if check["status"] != "not-run"]
    assert again.exit_code == 1 and [check["case"] for check in ran] == [failed[0]["case"]]


def test_it_is_for_cases_of_verify_alone():
    result = CliRunner().invoke(app, ["verify", "--mutants", "--set", "K=128"])
    assert result.exit_code == 2
    result = CliRunner().invoke(app, ["verify", "--set", "Z=1"])
    assert result.exit_code == 2
