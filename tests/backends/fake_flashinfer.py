"""A stand-in for package flashinfer: the signatures and conventions of 0.7.2.post1 (and of 0.6.13), in float64.

Its prefill is ``rule.py`` of the stand-in for flash_qla, called in FlashInfer's conventions.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.backends import fake_flash_qla

PACKAGES = ("flashinfer",)
PREFILL = """
import math
import torch

from .rule import rule

CALLS = []
LAUNCHED = []
_STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FALLS_BACK = False


def _computed(output, output_state, q, k, v, initial_state, g, beta, cu_seqlens, scale):
    for name, x in (("q", q), ("k", k), ("v", v), ("g", g), ("beta", beta), ("output", output)):
        if not x.is_contiguous():
            raise RuntimeError(f"{name} must be contiguous")
    if g.dtype != torch.float32 or beta.dtype != torch.float32:
        raise RuntimeError("alpha and beta must have dtype torch.float32")
    if q.shape[-1] != 128:
        raise RuntimeError(f"DSL kernel only supports D=128, got {q.shape[-1]}")
    if q.dtype not in (torch.float16, torch.bfloat16) or k.dtype != q.dtype or v.dtype != q.dtype:
        raise RuntimeError("DSL kernel only supports fp16/bf16 inputs of one dtype")
    # its states are [N, H, V, K] and its gate is linear
    log_gate = g.double().log()
    o, final = rule(*(x[None] for x in (q, k, v, log_gate, beta)), scale, initial_state, cu_seqlens, False, True)
    output.copy_(o[0])
    output_state.copy_(final)


def chunk_gated_delta_rule_sm90(output, output_state, q, k, v, initial_state, g, beta, cu_seqlens, scale):
    LAUNCHED.append("whole")
    _computed(output, output_state, q, k, v, initial_state, g, beta, cu_seqlens, scale)


def cp_delta_rule_dsl_sm90(output, output_state, q, k, v, g, beta, cu_seqlens, scale, initial_state):
    LAUNCHED.append("split")
    _computed(output, output_state, q, k, v, initial_state, g, beta, cu_seqlens, scale)


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g=None,
    beta=None,
    scale=None,
    initial_state=None,
    output_final_state: bool = False,
    cu_seqlens=None,
    use_qk_l2norm_in_kernel: bool = False,
    output=None,
    output_state=None,
    state_checkpoints=None,
    checkpoint_cu_starts=None,
    checkpoint_every_n_tokens: int = 0,
    use_cp="auto",
    state_indices=None,
    _cp_chunk_len=None,
    backend="auto",
    max_seqlen=None,
):
    CALLS.append(dict(locals()))
    assert cu_seqlens is not None
    if cu_seqlens.size(0) < 2:
        raise ValueError("cu_seqlens must contain at least two entries")
    if use_qk_l2norm_in_kernel:
        from .gdn_kernels.qk_l2norm import normalize_qk

        q, k = normalize_qk(q, k)
    scale = scale if scale is not None and scale != 0.0 else 1.0 / math.sqrt(q.shape[-1])
    if output_state is None:
        shape = (cu_seqlens.size(0) - 1, v.shape[1], v.shape[2], q.shape[2])
        output_state = torch.empty(shape, dtype=torch.float32, device=q.device)
    common = (output, output_state, q, k, v)
    few = (cu_seqlens.size(0) - 1) * v.shape[1] < 4
    if use_cp is True or (use_cp == "auto" and few):
        if FALLS_BACK:
            import warnings

            warnings.warn("CP delta rule heuristic matched but CP dispatch is unavailable", RuntimeWarning)
        else:
            cp_delta_rule_dsl_sm90(*common, g, beta, cu_seqlens, scale, initial_state=initial_state)
            return (output, output_state) if output_final_state else output
    chunk_gated_delta_rule_sm90(*common, initial_state, g, beta, cu_seqlens, scale)
    return (output, output_state) if output_final_state else output
"""
DECODE = """
import torch
import torch.nn.functional as F

CALLS = []


def run_pretranspose_decode(pool, A_log, a, dt_bias, q, k, v, b, output, scale, use_qk_l2norm, read, write):
    HV, H = v.shape[2], q.shape[2]
    for n in range(q.shape[0]):
        if read[n] < 0:
            output[n] = 0
            continue
        for head in range(HV):
            query, key = (x[n, 0, head // (HV // H)].double() for x in (q, k))
            if use_qk_l2norm:
                query, key = (x / (x @ x + 1e-6).sqrt() for x in (query, key))
            gate = -A_log[head].double().exp() * F.softplus(a[n, 0, head].double() + dt_bias[head].double())
            state = pool[read[n], head].double() * gate.exp()  # [V, K]
            delta = b[n, 0, head].double().sigmoid() * (v[n, 0, head].double() - state @ key)
            state = state + torch.outer(delta, key)
            output[n, 0, head] = (scale * (state @ query)).to(output.dtype)
            if write[n] >= 0:
                pool[write[n], head] = state.to(pool.dtype)


def gated_delta_rule_decode_pretranspose(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    state,
    A_log: torch.Tensor,
    a: torch.Tensor,
    dt_bias: torch.Tensor,
    b: torch.Tensor,
    scale=None,
    output=None,
    use_qk_l2norm: bool = True,
    initial_state=None,
    initial_state_indices=None,
    output_state_indices=None,
    intermediate_states_buffer=None,
    disable_state_update: bool = False,
    backend="auto",
):
    CALLS.append(dict(locals()))
    B, T, H, K = q.shape
    assert (state is None) != (initial_state is None)
    assert initial_state.shape == (initial_state.shape[0], v.shape[2], v.shape[3], K)
    assert initial_state.dtype == torch.float32 and A_log.dtype == torch.float32
    assert T == 1 and K >= 128 and v.shape[3] >= 128 and v.shape[3] % 8 == 0
    target = q.dtype if output is None else output.dtype
    if output is None:
        output = torch.zeros(v.shape, dtype=torch.bfloat16, device=q.device)
    write = initial_state_indices if output_state_indices is None else output_state_indices
    run_pretranspose_decode(initial_state, A_log, a, dt_bias, q, k, v, b, output, K**-0.5 if scale is None else scale,
                            use_qk_l2norm, initial_state_indices, write)
    return output.to(target), initial_state
"""
FILES = {
    "flashinfer/__init__.py": '__version__ = "0.7.2.post1"\n',
    "flashinfer/rule.py": fake_flash_qla.FILES["flash_qla/rule.py"],
    "flashinfer/gdn_prefill.py": PREFILL,
    "flashinfer/gdn_decode.py": DECODE,
    "flashinfer/gdn_kernels/__init__.py": "",
    "flashinfer/gdn_kernels/qk_l2norm.py": """
def normalize_qk(q, k):
    return tuple((x.float() * (x.float() ** 2).sum(-1, keepdim=True).add(1e-6).rsqrt()).to(x.dtype) for x in (q, k))
""",
}


def older() -> dict[str, str | None]:
    """Return the changes that make it 0.6.13 without CuTe DSL: no splitting, no normalisation, no decode."""
    prefill = PREFILL
    for line in ("_STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)\n", '    use_cp="auto",\n',
                 "    state_indices=None,\n", "    _cp_chunk_len=None,\n", '    backend="auto",\n',
                 "    max_seqlen=None,\n"):  # fmt: skip
        assert line in prefill
        prefill = prefill.replace(line, "")
    start = prefill.index("    if use_qk_l2norm_in_kernel:"), prefill.index("    scale = scale if")
    prefill = prefill[: start[0]] + prefill[start[1] :]
    start = prefill.index("    few = "), prefill.index("    chunk_gated_delta_rule_sm90(*common")
    prefill = prefill[: start[0]] + "    get_gdn_prefill_module()\n" + prefill[start[1] :]
    prefill = prefill.replace("chunk_gated_delta_rule_sm90", "_sm90") + "\n\ndef get_gdn_prefill_module():\n    pass\n"
    decode = DECODE.replace("def run_pretranspose_decode(", "run_pretranspose_decode = None\n\n\ndef _(")
    return {
        "flashinfer/gdn_prefill.py": prefill,
        "flashinfer/gdn_decode.py": decode.replace("    run_pretranspose_decode(", "    _("),
        "flashinfer/gdn_kernels/qk_l2norm.py": None,
    }


def write(folder: Path, **changes: str | None) -> None:
    """Write the package into a folder; ``changes`` maps a path to other text, or None for no file."""
    for name, text in {**FILES, **changes}.items():
        if text is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def forget() -> None:
    """Take the stand-in, or what else was imported under its name, out of this process."""
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]
