"""The Triton kernels against the oracle, in Triton's interpreter; on a GPU `deltaproof verify` holds them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CHECK = """
import torch
from deltaproof.ops.registry import operator
from deltaproof.ops.gated_delta_rule.triton_backend import TritonBackend
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, probes
from deltaproof.verify.target import Target

context = Context(Target(TritonBackend(), operator("gated_delta_rule"), "test", face=False), seed=0, device="cpu")
small = dict(H=1, HV=2, K=16, V=8)
print("seed 0")
for probe, case in [
    ("ragged", Case("recurrent", T=5, K=9, V=5, H=1, HV=2)),
    ("ragged", Case("chunk", T=19, chunk_size=16, gate_in_kernel=True, beta_sigmoid=True, layout="v_first", **small)),
    ("ragged", Case("chunk", T=35, dtype="bfloat16", B=1, **small)),
    ("ragged", Case("chunk", T=18, chunk_size=32, dtype="float16", B=1, normalize=False, **small)),
    ("varlen", Case("chunk", seqlens=(0, 17, 3), tail=2, chunk_size=16, **small)),
    ("varlen", Case("recurrent", seqlens=(2, 0, 3), tail=1, **small)),
    ("slots", Case("decode", "padding", T=2, B=3, read=(2, -1, 9), write=(4, 3, 5), dtype="bfloat16", **small)),
    ("slots", Case("decode", "tokens", T=2, B=2, read=(1, 2), write=((3, -1), (5, 0)), num_tokens=(2, 1), **small)),
    ("slots", Case("prefill", "padding", T=17, B=2, read=(2, -1), chunk_size=16, state_dtype="bfloat16", **small)),
]:
    if probe == "slots":
        call = context.call(case)
        seen = list(context.judge(case, context.run(case, call), call))
        worst = [item.message for item in seen if not item.ok]
        print("pass" if not worst else "fail", case.id, worst)
    else:
        check = execute(context, probes()[probe], case)
        print(check.status.value, case.id, check.message)
"""

HELPERS = """
import torch, triton, triton.language as tl
from deltaproof.ops.common.triton_language import dot, stored
from deltaproof.ops.common.triton_inverse import invert_16

@triton.jit
def multiply(a, b, c):
    at = tl.arange(0, 16)
    tile = at[:, None] * 16 + at[None, :]
    tl.store(c + tile, dot(tl.load(a + tile), tl.load(b + tile)))

@triton.jit
def keep(x, y):
    at = tl.arange(0, 64)
    tl.store(y + at, stored(tl.load(x + at), tl.bfloat16))

@triton.jit
def invert(a, b):
    at = tl.arange(0, 16)
    tile = at[:, None] * 16 + at[None, :]
    tl.store(b + tile, invert_16(tl.load(a + tile)))

torch.manual_seed(0)
a, b, c = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16(), torch.empty(16, 16)
multiply[(1,)](a, b, c)
print("dot", float((c - a.float() @ b.float()).abs().max()) < 1e-5)
x, y = torch.randn(64), torch.empty(64, dtype=torch.bfloat16)
keep[(1,)](x, y)
print("stored", torch.equal(y, x.bfloat16()))
lower, inverse = torch.rand(16, 16).tril(-1) * 2, torch.empty(16, 16)
invert[(1,)](lower, inverse)
want = torch.linalg.inv(torch.eye(16, dtype=torch.float64) + lower.double())
print("inverse", float((inverse - want).norm() / want.norm()) < 1e-5)
"""


def interpreted(source: str, tmp_path) -> list[str]:
    # a kernel's source is read from its file
    script = tmp_path / "script.py"
    script.write_text(source)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_every_form_agrees_with_the_oracle_in_the_interpreter(tmp_path):
    lines = interpreted(CHECK, tmp_path)
    verdicts = [line for line in lines if line.startswith(("pass", "fail", "error", "unsupported", "skipped"))]
    assert len(verdicts) == 9, lines
    assert all(line.startswith("pass") for line in verdicts), "\n".join(lines)


def test_the_helpers_round_and_multiply_bf16_rightly_in_the_interpreter(tmp_path):
    assert interpreted(HELPERS, tmp_path) == ["dot True", "stored True", "inverse True"]


def test_without_a_gpu_the_backend_says_so():
    from deltaproof import ContractError
    from deltaproof.backends.registry import builtin, load
    from deltaproof.ops.common.triton_language import INTERPRETED

    if INTERPRETED:
        pytest.skip("the interpreter is on")
    assert "device:cpu" in load("triton", "gated_delta_rule").unsupported
    import torch

    from deltaproof import chunk_gated_delta_rule

    x, gate = torch.zeros(1, 3, 1, 16), torch.zeros(1, 3, 1)
    with pytest.raises(ContractError, match="the kernels need a GPU"):
        chunk_gated_delta_rule(x, x, x, gate, gate, backend="triton")
    assert builtin("gated_delta_rule", "triton").name == "triton"
