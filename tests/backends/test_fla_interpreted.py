"""The adapter on the installed fla, in Triton's interpreter; on a GPU `deltaproof verify --backend fla` holds it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SCRIPT = """
import builtins
import importlib

from triton.runtime import autotuner

make = autotuner.Autotuner.__init__


def with_one_configuration(self, fn, names, configurations, *more, **options):
    # choosing between several takes a GPU
    make(self, fn, names, configurations[:1], *more, **options)


autotuner.Autotuner.__init__ = with_one_configuration

import torch

from deltaproof.backends.registry import load
from deltaproof.ops.registry import operator
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, probes
from deltaproof.verify.target import Target

backend = load("fla", "gated_delta_rule")


class Place(int):
    def to(self, *dtype):
        return self


# the interpreter counts loops in ints, and the compiler in values that have a dtype
states = importlib.import_module("fla.ops.common.chunk_delta_h")
states.range = lambda *ends: (Place(i) for i in builtins.range(*map(int, ends)))

backend.unsupported.pop("device:cpu")
backend.unsupported.pop("backward", None)
context = Context(Target(backend, operator("gated_delta_rule"), "test", face=False), seed=0, device="cpu")
small = dict(B=1, H=1, HV=2, K=16, V=24)
options = dict(gate_in_kernel=True, beta_sigmoid=True, neg_eigval=True, layout="v_first")
for probe, case in [
    ("ragged", Case("chunk", T=35, **small)),
    ("ragged", Case("chunk", T=19, chunk_size=16, **options, **small)),
    ("ragged", Case("recurrent", T=5, K=9, V=5, H=1, HV=2)),
    ("ragged", Case("recurrent", T=5, normalize=False, **options, **small)),
    ("varlen", Case("chunk", seqlens=(17, 0, 3), **options, **small)),
    ("varlen", Case("recurrent", seqlens=(2, 0, 3), **small)),
    ("gradients", Case("chunk", "both", T=20, **small)),
    ("gradients", Case("chunk", "o-only", T=20, **options, **small)),
    ("gradients", Case("recurrent", "both", T=5, **small)),
]:
    check = execute(context, probes()[probe], case)
    print(check.status.value, probe, case.form, check.message, check.reason or "")
print("forms", *sorted(backend.ran))
print("packages", *sorted({name.split(".")[0] for names in backend.ran.values() for name in names}))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fla", "einops")), reason="fla-core is not installed"
)
def test_fla_gives_what_the_contract_asks_through_the_adapter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 11, done.stdout
    assert all(line.startswith("pass ") for line in lines[:8]), done.stdout
    assert lines[8].startswith("unsupported gradients recurrent  backward: the backward of"), done.stdout
    assert lines[9] == "forms chunk chunk backward recurrent"
    assert lines[10] == "packages fla"
