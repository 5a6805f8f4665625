"""A run: each backend is checked, then timed; what cannot be timed is said and ends nothing."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator
from rich.console import Console

from deltaproof.backends import registry
from deltaproof.bench import loading
from deltaproof.bench.copies import WAYS
from deltaproof.bench.device import Cpu
from deltaproof.bench.loading import default_backends, load_backends
from deltaproof.bench.model import RowStatus
from deltaproof.bench.runner import Settings, exit_code, run, split_names
from deltaproof.bench.schema import bench_schema, bench_schema_files
from deltaproof.bench.text import print_report
from deltaproof.bench.workload import DecodeWorkload, SequenceWorkload
from deltaproof.contracts.errors import ContractError

BACKENDS = str(Path(__file__).with_name("backends.py"))
SHORT = SequenceWorkload(heads=(1, 2), lengths=(20, 9), K=16, V=8)
LONG = SequenceWorkload(heads=(2, 2), lengths=(40,), K=16, V=16, layout="v_first")
ROWS = DecodeWorkload(heads=(2, 4), rows=3, K=16, V=8)
ROWS_K_FIRST = DecodeWorkload(heads=(2, 4), rows=3, K=16, V=8, layout="k_first")


def settings(verb, *names, workloads=None, dtype="bfloat16", operator="gated_delta_rule"):
    specs = tuple(name if name in ("torch", "triton") else f"{BACKENDS}:{name}" for name in names)
    default = (ROWS,) if verb == "decode" else (SHORT,)
    return Settings(operator, verb, specs, workloads or default, "cpu", dtype, replays=2)


def bench(verb, *names, **more):
    """Run; every call takes one millisecond longer than a second by a clock of its own."""
    ticks = itertools.count(0.0, 1.0)
    return run(settings(verb, *names, **more), "deltaproof bench", device=Cpu(clock=lambda: next(ticks)))


def shown(report):
    console = Console(file=StringIO(), width=200, color_system=None)
    print_report(report, console)
    return console.file.getvalue()


def by_backend(report):
    assert len({row.workload for row in report.rows}) == 1
    return {row.backend: row for row in report.rows}


@pytest.mark.parametrize(
    ("verb", "form", "outputs"),
    [
        ("prefill", "chunk", {"o", "final_state"}),
        ("backward", "chunk", {"o", "final_state", "dq", "dk", "dv", "dg", "dbeta", "dinitial_state"}),
        ("decode", "decode", {"o", "state", "other_slots"}),
    ],
)
def test_a_row_has_its_errors_its_time_and_its_ratios(verb, form, outputs):
    report = bench(verb, "torch", "Peer")
    row = by_backend(report)["torch"]
    assert (row.status, row.form) == (RowStatus.TIMED, form)
    assert {error.output for error in row.errors} == outputs and all(error.ok for error in row.errors)
    # the clock ticks once a look: a pass over two sets takes a second
    assert row.time.median_ms == 500 and row.time.calls == 2 and row.time.replays == 2
    assert (row.forward_backward is not None) == (verb == "backward")
    (workload,) = report.workloads
    assert row.to_floor == pytest.approx(500 / workload.floor_ms)
    assert row.to_peers == {"peer": 1.0} and by_backend(report)["peer"].to_peers == {}
    assert row.peak_memory_bytes is None
    assert workload.sets == 2 and workload.set_bytes > 0
    assert exit_code(report) == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("verb", ["prefill", "backward", "decode"])
def test_the_torch_backend_passes_its_check_in_every_dtype_and_layout(verb, dtype):
    workloads = (ROWS, ROWS_K_FIRST) if verb == "decode" else (SHORT, LONG)
    report = bench(verb, "torch", workloads=workloads, dtype=dtype)
    assert [row.status for row in report.rows] == [RowStatus.TIMED] * 2, [row.reason for row in report.rows]


@pytest.mark.parametrize(
    ("verb", "name", "words"),
    [
        ("prefill", "Scaled", "o: relative RMS error 0.1"),
        ("backward", "Scaled", "dq: relative RMS error"),
        ("decode", "Scaled", "o: relative RMS error 0.1"),
        ("backward", "Forgetful", "dbeta: relative RMS error 0.5"),
        ("decode", "Trampling", "other_slots"),
    ],
)
def test_a_wrong_backend_fails_is_not_timed_and_is_no_peer_to_compare_with(verb, name, words):
    report = bench(verb, "torch", name)
    rows = by_backend(report)
    wrong = rows[name.lower()]
    assert wrong.status is RowStatus.FAIL and wrong.time is None and wrong.to_floor is None
    assert words in wrong.reason, wrong.reason
    assert rows["torch"].status is RowStatus.TIMED and rows["torch"].to_peers == {}
    assert exit_code(report) == 1
    text = shown(report)
    assert f"FAIL  {wrong.workload} {name.lower()}" in text and words in text


def test_only_the_broken_output_is_blamed():
    wrong = by_backend(bench("backward", "Forgetful"))["forgetful"]
    assert [error.output for error in wrong.errors if not error.ok] == ["dbeta"]


def test_a_backend_that_raises_ends_its_row_and_nothing_else():
    report = bench("prefill", "Raising", "torch", workloads=(SHORT, LONG))
    raised = [row for row in report.rows if row.backend == "raising"]
    assert [row.status for row in raised] == [RowStatus.ERROR] * 2
    assert raised[0].reason == "RuntimeError: out of registers"
    assert len(report.of(RowStatus.TIMED)) == 2 and exit_code(report) == 1
    assert f"ERROR  {SHORT.name} raising chunk: RuntimeError: out of registers" in shown(report)


def test_a_peer_without_a_pool_is_timed_on_dense_states_with_what_it_lacks_computed_beforehand():
    report = bench("decode", "torch", "Dense", workloads=(ROWS,))
    rows = by_backend(report)
    dense = rows["dense"]
    assert (dense.status, dense.form) == (RowStatus.TIMED, "recurrent"), dense.reason
    assert {error.output for error in dense.errors} == {"o", "final_state"}
    assert any("normalize_qk, gate_in_kernel, beta_sigmoid" in note for note in dense.notes)
    assert set(rows["torch"].to_peers) == {"dense"}
    text = shown(report)
    assert "dense (recurrent) ms" in text and "computed beforehand" in text


def test_a_peer_that_keeps_a_wider_state_than_was_asked_for_is_not_timed_and_not_wrong():
    half = replace(ROWS, state_dtype="bfloat16")
    report = bench("decode", "torch", "Widening", workloads=(ROWS, half))
    rows = {(row.workload, row.backend): row for row in report.rows}
    assert rows[ROWS.name, "widening"].status is RowStatus.TIMED
    refused = rows[half.name, "widening"]
    assert refused.status is RowStatus.UNSUPPORTED
    assert "float32, not torch.bfloat16" in refused.reason
    assert rows[half.name, "torch"].status is RowStatus.TIMED and exit_code(report) == 0


def test_a_decode_is_held_to_a_copy_of_as_many_bytes_and_a_speculative_step_to_one_token():
    speculative = replace(ROWS, drafts=3)
    report = bench("decode", "torch", "Dense", workloads=(ROWS, speculative))
    one, dense, step, refused = report.rows
    for info, row in zip(report.workloads, (one, step), strict=True):
        assert info.copy_time is not None and info.copy_way in WAYS and row.time is not None
        assert row.to_copy == info.copy_time.median_ms / row.time.median_ms
    assert one.to_one_token is None and dense.to_one_token is None
    assert step.to_one_token == step.time.median_ms / one.time.median_ms
    assert refused.status is RowStatus.UNSUPPORTED and "no drafts" in refused.reason
    text = shown(report)
    assert "of copy" in text and "÷ 1 token" in text
    plain = bench("prefill", "torch")
    assert plain.workloads[0].copy_time is None and plain.ceilings.copy_way in WAYS


def test_what_a_backend_declares_is_shown_with_its_reason():
    report = bench("decode", "Dense", workloads=(ROWS_K_FIRST,))
    (row,) = report.rows
    assert row.status is RowStatus.UNSUPPORTED and "layout:k_first" in row.reason
    assert exit_code(report) == 2, "nothing was timed"
    (row,) = bench("prefill", "Dense").rows
    assert row.status is RowStatus.UNSUPPORTED and "no form 'chunk'" in row.reason
    assert f"unsupported  {SHORT.name} dense: " in shown(bench("prefill", "torch", "Dense"))


def test_a_backend_with_linear_gates_gets_them_and_has_no_gradients_to_compare():
    report = bench("prefill", "Linear")
    row = by_backend(report)["linear"]
    assert row.status is RowStatus.TIMED and row.notes == ["computed beforehand: exp(g)"]
    (row,) = bench("prefill", "Float32", workloads=(SHORT,), dtype="bfloat16").rows
    assert row.status is RowStatus.TIMED and row.notes == ["computed beforehand: beta in float32"]
    refused = by_backend(bench("backward", "Linear"))["linear"]
    assert refused.status is RowStatus.UNSUPPORTED and "linear gates" in refused.reason


def test_the_inputs_stay_as_they_were_while_a_pool_is_decoded_for_the_check():
    from deltaproof.bench.inputs import decode_sets
    from deltaproof.bench.verbs import VERBS
    from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend

    calls = decode_sets("gated_delta_rule", ROWS, torch.bfloat16, "cpu", 0)
    before = calls[0].pool.clone()
    decode = VERBS["decode"]("gated_delta_rule")
    decode.reference(TorchBackend(), calls[0])
    decode.plan(TorchBackend(), calls).outputs()
    assert torch.equal(calls[0].pool, before)


def test_a_registered_name_that_cannot_be_loaded_is_said_and_ends_nothing(monkeypatch):
    known = registry.load

    def load(spec, operator):
        if spec == "absent":
            raise ContractError("backend", "a module that can be imported", "absent (No module named 'absent')")
        return known(spec, operator)

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(loading, "names", lambda operator: ["torch", "absent"])
    chosen = Settings("gated_delta_rule", "prefill", ("absent", "torch"), (SHORT,), "cpu", "bfloat16", 1)
    report = run(chosen, "")
    assert {one.name: one.not_loaded is None for one in report.backends} == {"absent": False, "torch": True}
    assert [row.backend for row in report.rows] == ["torch"] and exit_code(report) == 0
    assert "not loaded  absent: " in shown(report)


@pytest.mark.parametrize("spec", ["no-such", "no/such/file.py:X", f"{BACKENDS}:Missing", f"{BACKENDS}:NoForm"])
def test_a_name_nobody_registered_is_a_mistake(spec):
    with pytest.raises(ContractError, match="backend"):
        load_backends("gated_delta_rule", "cpu", (spec,))


def test_by_default_ours_runs_and_on_a_gpu_a_peer_beside_it(monkeypatch):
    monkeypatch.setattr(loading, "names", lambda operator: ["torch", "triton", "fla"])
    assert default_backends("gated_delta_rule", "cpu") == ("ours",)
    assert default_backends("gated_delta_rule", "cuda") == ("ours", "fla")
    monkeypatch.setattr(loading, "names", lambda operator: ["torch", "triton"])
    assert default_backends("gated_delta_rule", "cuda") == ("ours",)


@pytest.mark.parametrize("verb", ["prefill", "backward", "decode"])
def test_ours_is_what_a_call_without_a_backend_runs(verb):
    ours = Settings("gated_delta_rule", verb, ("ours",), (ROWS if verb == "decode" else SHORT,), "cpu", "bfloat16", 1)
    report = run(ours, "deltaproof bench")
    (row,), (one,) = report.rows, report.backends
    assert (row.status, row.backend, row.chosen) == (RowStatus.TIMED, "ours", "torch"), row.reason
    assert (one.name, one.peer) == ("ours", False) and one.version.startswith("torch ")
    assert "ours: torch in 1 of 1 workloads" in shown(report)


def test_ours_is_chosen_for_each_call_and_unsupported_where_none_can_make_it(monkeypatch):
    own, peer = registry.load("torch", "gated_delta_rule"), registry.load(f"{BACKENDS}:Peer", "gated_delta_rule")

    def select(operator, form, call, backend):
        assert (operator, form, backend) == ("gated_delta_rule", "chunk", None)
        if call.v.shape[-1] == 4:
            raise ContractError("backend", "a backend that can make this call", "none: torch lacks it")
        return own if call.v.shape[-1] == 8 else peer

    monkeypatch.setattr(loading, "select", select)
    third = replace(SHORT, V=4)
    chosen = Settings("gated_delta_rule", "prefill", ("ours", "torch"), (SHORT, LONG, third), "cpu", "bfloat16", 1)
    rows = [row for row in run(chosen, "").rows if row.backend == "ours"]
    assert [row.chosen for row in rows] == ["torch", "peer", None]
    assert rows[2].status is RowStatus.UNSUPPORTED and "torch lacks it" in rows[2].reason


def test_two_backends_of_one_name_are_told_apart():
    report = bench("prefill", "torch", "Peer", "Dense")
    assert [one.peer for one in report.backends] == [False, True, True]
    spec = "deltaproof.ops.gated_delta_rule.torch_backend:TorchBackend"
    found = load_backends("gated_delta_rule", "cpu", ("torch", spec))
    assert [one.info.name for one in found] == ["torch", spec]


def test_names_are_split_at_commas():
    assert split_names(None) is None
    assert split_names("triton, fla") == ("triton", "fla")
    with pytest.raises(ContractError, match="--backends"):
        split_names(" , ")


def test_every_report_is_what_the_schema_says_and_the_kept_schema_is_that_one():

    for name, text in bench_schema_files().items():
        assert (Path(__file__).parents[2] / "docs" / name).read_text() == text
    Draft202012Validator.check_schema(bench_schema())
    validator = Draft202012Validator(bench_schema())
    for report in (
        bench("prefill", "torch", "Scaled", "Raising", "Dense", "Peer"),
        bench("backward", "torch", "Forgetful"),
        bench("decode", "torch", "Dense", "Trampling"),
    ):
        data = json.loads(report.model_dump_json())
        validator.validate(data)
        assert data["schema_name"] == "deltaproof.bench" and data["machine"] and data["versions"]["torch"]
        assert data["ceilings"]["copy_bytes_per_s"] > 0
    data["rows"][0]["status"] = "quick"
    assert not validator.is_valid(data)


def test_a_backend_that_answers_nan_fails_with_null_in_json(monkeypatch):
    from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend

    def chunk(self, call):
        o, final = TorchBackend.chunk(self, call)
        return torch.full_like(o, float("nan")), final

    peer = registry.load(f"{BACKENDS}:Peer", "gated_delta_rule")
    monkeypatch.setattr(
        loading, "load", lambda spec, operator: registry.load("torch", operator) if spec == "torch" else peer
    )
    monkeypatch.setattr(type(peer), "chunk", chunk, raising=False)
    report = bench("prefill", "Peer")
    (row,) = report.rows
    assert row.status is RowStatus.FAIL and "not finite" in row.reason
    data = json.loads(report.model_dump_json())
    assert data["rows"][0]["errors"][0]["relative_rms"] is None
    Draft202012Validator(bench_schema()).validate(data)


def kept(*workloads, interrupt=None):
    """Run the torch backend and return copies of what was kept; interrupt at the given row."""
    found, rows = [], []

    def progress(row):
        rows.append(row)
        if len(rows) == interrupt:
            raise KeyboardInterrupt

    def run_it():
        return run(
            settings("prefill", "torch", workloads=workloads), "deltaproof bench", progress,
            keep=lambda report: found.append(report.model_copy(deep=True)),
        )  # fmt: skip

    if interrupt is None:
        return found, run_it()
    with pytest.raises(KeyboardInterrupt):
        run_it()
    return found, None


def test_what_was_measured_is_kept_after_every_workload_and_is_complete_after_the_last():
    found, report = kept(SHORT, LONG)
    assert [(len(one.workloads), len(one.rows), one.complete) for one in found] == [
        (0, 0, False), (1, 1, False), (2, 2, True),
    ]  # fmt: skip
    assert found[-1] == report
    assert found[1].rows[0].to_floor is not None, "ratios and all"
    validator = Draft202012Validator(bench_schema())
    for one in found:
        validator.validate(json.loads(one.model_dump_json()))
    assert "not whole: the run did not reach its end; workloads done: 1" in shown(found[1])
    assert "not whole" not in shown(report)


def test_a_run_that_is_cut_off_has_kept_the_workloads_before():
    found, _ = kept(SHORT, LONG, interrupt=2)
    assert [row.workload for row in found[-1].rows] == [SHORT.name]
    assert not found[-1].complete


def test_the_table_names_floors_times_and_ratios():
    text = shown(bench("backward", "torch", "Peer", workloads=(SHORT, LONG)))
    head = next(line for line in text.splitlines() if line.startswith("workload"))
    for word in ("floor ms", "torch ms", "÷ floor", "with fwd ms", "peer ms", "peer ÷ torch"):
        assert word in head
    assert any(line.startswith(LONG.name) and "500.000" in line and "1.00" in line for line in text.splitlines())
    assert "peer ÷ torch: geometric mean 1.00, worst 1.00" in text
    assert "fastest peer ÷ torch (above 1: torch is faster): geometric mean 1.00 of 2, worst 1.00" in text
    assert "  few heads: geometric mean 1.00 of 2" in text
    assert "TB/s" in text and "TFLOP/s" in text
