"""A stand-in for packages flash_qla and tilelang: the signature and the conventions of flash-qla 0.1.3, in float64."""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGES = ("flash_qla", "tilelang")
FILES = {
    "tilelang/__init__.py": '__version__ = "0.1.15"\n',
    "tilelang/jit.py": """
class JITKernel:
    launched = []

    def __init__(self, name):
        self.name = name

    def __call__(self, *arguments):
        JITKernel.launched.append(self.name)


class JITFunc:
    def __init__(self, orig_func):
        self.orig_func = orig_func


class JITImpl:
    def __init__(self, func):
        self.func = JITFunc(func)

    def __call__(self, *arguments, **keywords):
        return JITKernel(self.func.orig_func.__name__)
""",
    "flash_qla/kernels.py": """
from tilelang.jit import JITImpl


@JITImpl
def tilelang_kkt_solve():
    pass


@JITImpl
def tilelang_fused_chunk_gdr_fwd():
    pass


@JITImpl
def tilelang_correct_h0():
    pass


@JITImpl
def tilelang_fused_chunk_gdr_bwd():
    pass


FORWARD = [tilelang_kkt_solve, tilelang_fused_chunk_gdr_fwd]
SPLIT = [tilelang_correct_h0]
BACKWARD = [tilelang_fused_chunk_gdr_bwd]


def launch(functions):
    for function in functions:
        function(chunk_size=64)("tensors")
""",
    "flash_qla/rule.py": """
import torch


def rule(q, k, v, g, beta, scale, h0, cu_seqlens, use_qk_l2norm, state_v_first):
    B, T, H, K = q.shape
    HV, V = v.shape[2:]
    bounds = [(b, 0, T) for b in range(B)]
    if cu_seqlens is not None:
        starts = cu_seqlens.tolist()
        bounds = [(0, start, end) for start, end in zip(starts, starts[1:])]
    q, k, v, g, beta = (x.double() for x in (q, k, v, g, beta))
    if use_qk_l2norm:
        q, k = (x / (x * x).sum(-1, keepdim=True).add(1e-6).sqrt() for x in (q, k))
    rows = {}
    finals = []
    for n, (b, start, end) in enumerate(bounds):
        heads = []
        for head in range(HV):
            of = head // (HV // H)
            state = q.new_zeros(K, V)
            if h0 is not None:
                state = h0[n, head].double()
                state = state.T if state_v_first else state
            for t in range(start, end):
                key = k[b, t, of]
                state = state * g[b, t, head].exp()
                delta = beta[b, t, head] * (v[b, t, head] - key @ state)
                state = state + torch.outer(key, delta)
                rows[b, t, head] = scale * (q[b, t, of] @ state)
            heads.append(state.T if state_v_first else state)
        finals.append(torch.stack(heads))
    zero = v.new_zeros(V)
    o = torch.stack([torch.stack([torch.stack([rows.get((b, t, head), zero) for head in range(HV)])
                                  for t in range(T)]) for b in range(B)])
    return o, torch.stack(finals).float()
""",
    "flash_qla/__init__.py": """
import torch

from flash_qla import kernels
from flash_qla.rule import rule

__version__ = "0.1.3"
CALLS = []


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, g, beta, h0, more):
        with torch.enable_grad():
            given = [None if x is None else x.detach().requires_grad_() for x in (q, k, v, g, beta, h0)]
            o, final = rule(*given[:5], more["scale"], given[5], *more["rest"])
        ctx.given, ctx.made = given, (o, final)
        kernels.launch(kernels.FORWARD)
        kernels.launch(kernels.SPLIT if more["split"] else [])
        return o.detach().to(q.dtype), final.detach()

    @staticmethod
    def backward(ctx, do, dht):
        kernels.launch(kernels.BACKWARD)
        wanted = [x for x in ctx.given if x is not None]
        found = iter(torch.autograd.grad(ctx.made, wanted, (do.double(), dht), allow_unused=True))
        return (*(None if x is None else next(found) for x in ctx.given), None)


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float = None,
    initial_state: torch.Tensor = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    head_first: bool = False,
    state_v_first: bool = False,
    auto_cp: bool = True,
    enable_fwd_cp_cache: bool = True,
    cp_context=None,
    force_intra_cp: bool = False,
):
    CALLS.append(dict(locals()))
    assert q.dtype == k.dtype == v.dtype
    assert q.dtype == torch.bfloat16 or q.dtype == torch.float16
    assert not head_first
    assert v.shape[2] % k.shape[2] == 0
    assert k.shape[-1] == v.shape[-1] == 128
    rest = (cu_seqlens, use_qk_l2norm_in_kernel, state_v_first)
    more = {"scale": scale or k.shape[-1] ** -0.5, "rest": rest, "split": auto_cp and force_intra_cp}
    o, final_state = Function.apply(q, k, v, g, beta, initial_state, more)
    return o, final_state if output_final_state else None
""",
}


def write(folder: Path, **changes: str | None) -> None:
    """Write the packages into a folder; ``changes`` maps a path to other text, or None for no file."""
    for name, text in {**FILES, **changes}.items():
        if text is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def forget() -> None:
    """Take the stand-ins, or what else was imported under their names, out of this process."""
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]
