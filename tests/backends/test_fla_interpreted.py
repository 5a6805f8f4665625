"""The adapter on the installed fla, in Triton's interpreter; on a GPU `deltaproof verify --backend fla` holds it."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from tests.backends.fla_interpreted import needs_fla, run

SCRIPT = """
import builtins
import importlib
import sys

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

name = sys.argv[1]
backend = load("fla", name)


class Place(int):
    def to(self, *dtype):
        return self


# the interpreter counts loops in ints, and the compiler in values that have a dtype
states = importlib.import_module("fla.ops.common.chunk_delta_h")
states.range = lambda *ends: (Place(i) for i in builtins.range(*map(int, ends)))
# the interpreter finds tl.gather by that name alone, and fla gives it another
importlib.import_module("fla.ops.kda.chunk_intra").IS_GATHER_SUPPORTED = False

backend.unsupported.pop("device:cpu")
backend.unsupported.pop("backward", None)
context = Context(Target(backend, operator(name), "test", face=False), seed=0, device="cpu")
small = dict(B=1, H=1, HV=2, K=16, V=24)
options = dict(gate_in_kernel=True, beta_sigmoid=True, neg_eigval=True, layout="v_first")
bounded = dict(lower_bound=-0.7, A_log=False, **options, **small)
cases = {
    "gated_delta_rule": [
        ("ragged", Case("chunk", T=35, **small)),
        ("ragged", Case("chunk", T=19, chunk_size=16, **options, **small)),
        ("ragged", Case("recurrent", T=5, K=9, V=5, H=1, HV=2)),
        ("ragged", Case("recurrent", T=5, normalize=False, **options, **small)),
        ("varlen", Case("chunk", seqlens=(17, 0, 3), **options, **small)),
        ("varlen", Case("recurrent", seqlens=(2, 0, 3), **small)),
        ("gradients", Case("chunk", "both", T=20, **small)),
        ("gradients", Case("chunk", "o-only", T=20, **options, **small)),
        ("gradients", Case("recurrent", "both", T=5, **small)),
    ],
    "kda": [
        ("ragged", Case("chunk", T=35, **small)),
        ("ragged", Case("chunk", T=19, chunk_size=32, **options, **small)),
        ("ragged", Case("chunk", T=19, chunk_size=32, **bounded)),
        ("ragged", Case("chunk", T=19, safe_gate=True, **bounded)),
        ("ragged", Case("recurrent", T=5, K=9, V=5, H=1, HV=2)),
        ("ragged", Case("recurrent", T=5, normalize=False, **options, **small)),
        ("ragged", Case("recurrent", T=5, **bounded)),
        ("varlen", Case("chunk", seqlens=(17, 0, 3), **options, **small)),
        ("varlen", Case("recurrent", seqlens=(2, 0, 3), **small)),
        ("gradients", Case("chunk", "both", T=20, **small)),
        ("gradients", Case("chunk", "o-only", T=20, **options, **small)),
        ("gradients", Case("chunk", "both", T=20, **bounded)),
        ("gradients", Case("recurrent", "both", T=5, **small)),
    ],
}
for probe, case in cases[name]:
    check = execute(context, probes()[probe], case)
    print(check.status.value, probe, case.form, check.message, check.reason or "")
print("forms", *sorted(backend.ran))
print("packages", *sorted({kernel.split(".")[0] for kernels in backend.ran.values() for kernel in kernels}))
"""


@pytest.mark.slow
@needs_fla
@pytest.mark.parametrize(
    ("operator", "passing", "no_backward"),
    [
        ("gated_delta_rule", 8, "the backward of fused_recurrent_gated_delta_rule raises"),
        ("kda", 12, "fused_recurrent_kda launches its kernel outside of autograd"),
    ],
)
def test_fla_gives_what_the_contract_asks_through_the_adapter(operator, passing, no_backward):
    *checks, forms, packages = run(SCRIPT, operator)
    assert len(checks) == passing + 1, checks
    assert all(check.startswith("pass ") for check in checks[:passing]), checks
    assert checks[-1].startswith(f"unsupported gradients recurrent  backward: {no_backward}"), checks
    assert forms == "forms chunk chunk backward recurrent"
    assert packages == "packages fla"


REFUSED = """
import torch
from fla.ops.kda import chunk_kda, fused_recurrent_kda

q = k = torch.ones(1, 4, 1, 16)
v, g, beta = torch.ones(1, 4, 1, 16), torch.zeros(1, 4, 1, 16), torch.ones(1, 4, 1)
state = torch.zeros(1, 1, 16, 16)


def told(**options):
    try:
        chunk_kda(q, k, v, g, beta, **options)
    except (AssertionError, ValueError) as error:
        print(error)
    else:
        print("no word")


told(chunk_size=16)
told(initial_state=state.bfloat16())
told(initial_state=state.half())
told(use_gate_in_kernel=True)
o, _ = fused_recurrent_kda(q, k, v.requires_grad_(), g, beta)
print(o.requires_grad)
# raw gates of 0: -softplus(0) = -log(2) a token without a rate
o, state = fused_recurrent_kda(q, k, 0 * v, g, 0 * beta, initial_state=state + 1, output_final_state=True,
                               use_gate_in_kernel=True)
print(round(float(-state[0, 0, 0, 0].log() / 4 / torch.tensor(2.0).log()), 3))
"""


@pytest.mark.slow
@needs_fla
def test_what_the_adapter_declares_of_kda_is_what_fla_says():
    size, bfloat16, float16, rate, recorded, factor = run(REFUSED)
    assert "`chunk_size` must be either 32 or 64 for KDA, got 16" in size
    assert bfloat16 == float16 == "initial_state must be in float32."
    assert "`A_log` must be provided" in rate
    assert recorded == "False", "fused_recurrent_kda records no gradient"
    assert factor == "2.718", "without A_log its rate is e, not 1: documented for calls with a lower bound alone"
