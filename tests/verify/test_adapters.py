"""What verify does with a backend that lacks something in one form alone, and with one that says what ran."""

from __future__ import annotations

from typing import ClassVar

from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.reports import markdown
from deltaproof.reports.model import BackendInfo, Check, Status, VerifyReport
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, probes
from deltaproof.verify.target import Target
from deltaproof.verify.worker import ran

SIZES = {"B": 1, "T": 7, "H": 1, "HV": 2, "K": 16, "V": 8}


class NoRecurrentBackward(TorchBackend):
    name = "half"
    unsupported: ClassVar = {"recurrent/backward": "not written"}

    def recurrent(self, call):
        assert not call.q.requires_grad, "a backward was asked for that is declared missing"
        return super().recurrent(call)


def status(probe: str, case: Case) -> str:
    target = Target(NoRecurrentBackward(), operator("gated_delta_rule"), "test", face=False)
    check = execute(Context(target, seed=0, device="cpu"), probes()[probe], case)
    return check.status.value + (f", {check.reason}" if check.reason else check.message)


def test_what_one_form_lacks_is_missing_there_alone():
    assert status("gradients", Case("recurrent", "both", **SIZES)) == "unsupported, backward: not written"
    assert status("gradients", Case("chunk", "both", **SIZES)) == "pass"
    assert status("extreme_gates", Case("recurrent", gates="extreme", **SIZES)) == "pass", "its forward is judged"


def test_what_a_backend_saw_run_is_told():
    backend = NoRecurrentBackward()
    target = Target(backend, operator("gated_delta_rule"), "test", face=False)
    assert ran(target) == {}
    backend.ran = {"chunk": ("peer.a", "peer.b")}
    assert ran(target.in_form("chunk")) == {"chunk": ["peer.a", "peer.b"]}


def report(*cases: str, **info: object) -> VerifyReport:
    checks = [Check(probe="values", case=case, form="chunk", status=Status.FAIL, clause="N2") for case in cases]
    backend = BackendInfo(name="peer", version="1", source="peer", conventions={}, **info)
    return VerifyReport(
        operator="rule",
        contract_version=1,
        backend=backend,
        device="cuda",
        tier="full",
        seed=0,
        command="",
        checks=checks,
    )


def test_the_page_names_what_ran():
    text = markdown.render(report(ran={"chunk": ["peer.a", "peer.b"]}))
    assert "## Kernels seen\n\n- chunk: `peer.a`, `peer.b`\n" in text
    assert "Kernels seen" not in markdown.render(report())


def test_failures_that_are_alike_can_be_counted():
    failing = report("chunk/a", "chunk/b", "chunk/c")
    assert markdown.render(failing).count("### fail") == 3
    short = markdown.render(failing, alike=1)
    assert short.count("### fail") == 1 and "chunk/a" in short
    assert "And 2 more of the same probe, form, clause and hazard, in the JSON result." in short
