"""Runs of Kimi delta attention: what is held to the reference, and what is found out by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from deltaproof.bench.loading import default_backends, load_backends
from deltaproof.bench.model import RowStatus
from deltaproof.bench.runner import Settings, exit_code, run
from deltaproof.bench.schema import bench_schema
from deltaproof.bench.workload import DecodeWorkload, SequenceWorkload
from deltaproof.contracts.errors import ContractError

BACKENDS = str(Path(__file__).with_name("backends.py"))
PACK = SequenceWorkload(heads=(1, 2), lengths=(20, 70), K=16, V=8, layout="v_first")
EVEN = SequenceWorkload(heads=(2, 2), lengths=(40,), K=16, V=16)
ROWS = DecodeWorkload(heads=(2, 4), rows=3, K=16, V=8)
GRADIENTS = {"dq", "dk", "dv", "dg", "dbeta", "dA_log", "ddt_bias", "dinitial_state"}


def bench(verb, *names, workloads=None, dtype="bfloat16"):
    specs = tuple(name if name == "torch" else f"{BACKENDS}:{name}" for name in names)
    default = (ROWS,) if verb == "decode" else (PACK,)
    return run(Settings("kda", verb, specs, workloads or default, "cpu", dtype, replays=1), "deltaproof bench")


@pytest.mark.parametrize(
    ("verb", "form", "outputs"),
    [
        ("prefill", "chunk", {"o", "final_state"}),
        ("backward", "chunk", {"o", "final_state", *GRADIENTS}),
        ("decode", "decode", {"o", "state", "other_slots"}),
    ],
)
def test_a_row_is_timed_after_all_its_outputs_and_gradients_were_held_to_the_reference(verb, form, outputs):
    report = bench(verb, "torch", "KdaPeer")
    own, peer = report.rows
    assert [row.status for row in report.rows] == [RowStatus.TIMED] * 2, [row.reason for row in report.rows]
    assert (own.backend, peer.backend, own.form) == ("torch", "peer", form)
    assert {error.output for error in own.errors} == outputs and all(error.ok for error in own.errors)
    assert set(own.to_peers) == {"peer"} and own.to_floor > 0
    assert (own.forward_backward is not None) == (verb == "backward")
    assert exit_code(report) == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("verb", ["prefill", "backward", "decode"])
def test_the_torch_backend_passes_its_check_in_every_dtype_and_layout(verb, dtype):
    rows = (ROWS, replace(ROWS, layout="k_first"), replace(ROWS, drafts=2))
    report = bench(verb, "torch", workloads=rows if verb == "decode" else (PACK, EVEN), dtype=dtype)
    assert {row.status for row in report.rows} == {RowStatus.TIMED}, [row.reason for row in report.rows]


@pytest.mark.parametrize(
    ("verb", "name", "words"),
    [
        ("prefill", "KdaScaled", "o: relative RMS error 0.1"),
        ("backward", "KdaScaled", "dq: relative RMS error"),
        ("decode", "KdaScaled", "o: relative RMS error 0.1"),
        ("prefill", "KdaHeadGate", "final_state: relative RMS error"),
        ("decode", "KdaHeadGate", "state: relative RMS error"),
    ],
)
def test_a_wrong_backend_fails_and_is_not_timed(verb, name, words):
    report = bench(verb, name)
    (wrong,) = report.rows
    assert wrong.status is RowStatus.FAIL and wrong.time is None and words in wrong.reason, wrong.reason
    assert exit_code(report) == 1


def test_an_ordinary_kernel_passes_where_the_terms_of_its_gradient_of_A_log_cancel():
    cancelling = SequenceWorkload(heads=(2, 2), lengths=(30, 100), K=32, V=16, layout="v_first")
    (row,) = bench("backward", "KdaRounded", workloads=(cancelling,)).rows
    assert row.status is RowStatus.TIMED, row.reason
    (error,) = (error for error in row.errors if error.output == "dA_log")
    # the error is in proportion to the terms, of which the sums are some hundredths
    assert error.largest > 0.03 and error.relative_rms < 0.03


def test_only_a_wrong_gradient_of_a_gates_parameter_is_blamed():
    (wrong,) = bench("backward", "KdaForgetful").rows
    assert [error.output for error in wrong.errors if not error.ok] == ["dA_log"]


def test_a_peer_without_the_lower_bound_gets_the_gate_computed_beforehand():
    report = bench("decode", "torch", "KdaDense")
    dense = report.rows[1]
    assert (dense.status, dense.form) == (RowStatus.TIMED, "recurrent"), dense.reason
    assert "computed beforehand: gate_in_kernel" in dense.notes
    assert set(report.rows[0].to_peers) == {"dense"}


def test_a_report_names_its_operator_and_is_what_the_schema_says():
    data = json.loads(bench("backward", "torch", "KdaForgetful").model_dump_json())
    Draft202012Validator(bench_schema()).validate(data)
    assert data["operator"] == "kda"


def test_backends_are_those_of_the_operator():
    assert default_backends("kda", "cpu") == ("ours",)
    (loaded,) = load_backends("kda", "cpu", None)
    assert loaded.info.version.startswith("torch ") and not loaded.info.peer
    (row,) = run(Settings("kda", "prefill", None, (PACK,), "cpu", "bfloat16", 1), "").rows
    assert (row.status, row.chosen) == (RowStatus.TIMED, "torch")
    with pytest.raises(ContractError, match="a backend of kda"):
        load_backends("kda", "cpu", (f"{BACKENDS}:Peer",))
