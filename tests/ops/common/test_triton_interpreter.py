"""Triton's interpreter is switched on in time, refused where it cannot run, and faster to the same bits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deltaproof.ops.common import triton_interpreter

SAME = """
import os, sys
os.environ["TRITON_INTERPRET"] = "1"
from deltaproof.ops.common import triton_interpreter
if sys.argv[1] == "as it is":
    triton_interpreter.hurry = lambda: False

import hashlib, torch
from deltaproof.ops.common.calls import DeltaRuleOptions, SequenceCall
from deltaproof.ops.gated_delta_rule.triton_backend import TritonBackend
from triton.runtime import interpreter

torch.manual_seed(0)
found = hashlib.sha256()
for form, T, dtype in (("chunk", 19, torch.float32), ("recurrent", 4, torch.bfloat16)):
    q, k, v = (torch.randn(1, T, H, 9).to(dtype).requires_grad_(True) for H in (1, 1, 2))
    g, beta = -torch.rand(1, T, 2), torch.rand(1, T, 2)
    options = DeltaRuleOptions(scale=1.0, normalize_qk=True, chunk_size=16)
    call = SequenceCall(q, k, v, g, beta, options, output_final_state=True)
    o, state = getattr(TritonBackend(), form)(call)
    for x in (o, state, *torch.autograd.grad((o, state), (q, k, v), (torch.ones_like(o), torch.ones_like(state)))):
        assert bool(x.isfinite().all())
        found.update(x.detach().float().numpy().tobytes())
print(interpreter._patch_lang.__name__, found.hexdigest())
"""


def python(*words: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != triton_interpreter.VARIABLE}
    clean |= {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("numpy", "triton"),
    [("2.3.5", "3.6.0"), ("1.26.4", "3.5.1"), ("2.4.0", "3.7.1"), ("2.5.0rc1", "3.8.0+git1"), ("2.3.5", "3.7.1")],
)
def test_the_interpreter_runs_with_an_older_numpy_or_a_newer_triton(numpy, triton):
    assert triton_interpreter.why_not(numpy, triton) is None


@pytest.mark.parametrize(("numpy", "triton"), [("2.4.0", "3.6.0"), ("2.4.6", "3.7.0"), ("3.0", "3.5.1")])
def test_otherwise_the_reason_names_both_versions_and_what_to_install(numpy, triton):
    reason = triton_interpreter.why_not(numpy, triton)
    assert reason == (
        f"the interpreter of triton {triton} cannot take numpy {numpy}: pip install 'numpy<2.4', or triton>=3.7.1"
    )


def test_without_triton_the_reason_is_that(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    reason = triton_interpreter.why_not()
    assert reason is not None and reason.startswith("Triton's interpreter needs triton and numpy: ")


def test_it_is_switched_on_for_what_is_imported_next():
    pytest.importorskip("triton")
    code = (
        "import sys; from deltaproof.ops.common.triton_interpreter import switch_on; "
        "assert 'triton' not in sys.modules; switch_on(); "
        "from deltaproof.ops.common.triton_language import INTERPRETED, dot; "
        "print(INTERPRETED, type(dot).__name__)"
    )
    assert python("-c", code) == "True InterpretedFunction"
    assert python("-c", code, TRITON_INTERPRET="0") == "False JITFunction", "what the environment says is kept"


def test_too_late_is_said():
    pytest.importorskip("triton")
    code = (
        "import triton\nfrom deltaproof.ops.common.triton_interpreter import switch_on\n"
        "try:\n    switch_on()\nexcept RuntimeError as error:\n    print(error)"
    )
    assert python("-c", code) == "triton is imported already: set TRITON_INTERPRET=1 before the process starts"


def test_an_unknown_triton_is_left_as_it_is(monkeypatch):
    pytest.importorskip("triton")
    from triton.runtime import interpreter

    before = interpreter._patch_lang
    monkeypatch.setattr(triton_interpreter, "_triton", lambda: "9.0.0")
    monkeypatch.setattr(triton_interpreter, "_hurried", False)
    assert triton_interpreter.hurry() is False
    assert interpreter._patch_lang is before


@pytest.mark.slow
def test_hurried_or_not_every_bit_is_the_same(tmp_path):
    reason = triton_interpreter.why_not()
    if reason is not None:
        pytest.skip(reason)
    script = tmp_path / "script.py"
    script.write_text(SAME)
    plain = python(str(script), "as it is").split()
    hurried = python(str(script), "hurried").split()
    assert (plain[0], hurried[0]) == ("_patch_lang", "patch_unseen")
    assert hurried[1] == plain[1]
