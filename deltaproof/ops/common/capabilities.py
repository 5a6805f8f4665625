"""Names for what a call needs, so that a backend can declare, with a reason, what it lacks.

A backend's ``unsupported`` maps such a name, or the code of a clause, to the reason. What is not named is promised.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall

CAPABILITIES: dict[str, str] = {
    "backward": "gradients of every differentiable input",
    "varlen": "packed sequences by cu_seqlens",
    "gva": "more value heads than query/key heads",
    "unequal_head_sizes": "K != V",
    "odd_head_sizes": "K or V that is no power of two, or below 16",
    "head_size:64": "K or V of 64",
    "head_size:128": "K or V of 128",
    "head_size:other": "K or V of neither 64 nor 128",
    "initial_state": "an initial state",
    "final_state": "a final state",
    "layout:k_first": "states [N, HV, K, V]",
    "layout:v_first": "states [N, HV, V, K]",
    "dtype:float32": "q, k, v in float32",
    "dtype:bfloat16": "q, k, v in bfloat16",
    "dtype:float16": "q, k, v in float16",
    "mixed_dtypes": "q, k and v in different dtypes",
    "state:float32": "states in float32",
    "state:bfloat16": "states in bfloat16",
    "state:float16": "states in float16",
    "normalize_qk": "normalisation of q and k in the kernel",
    "gate_given": "log gates computed beforehand",
    "beta_given": "write strengths computed beforehand",
    "gate_in_kernel": "the gate computed from A_log and dt_bias",
    "gate_without_rate": "the gate in the kernel without A_log, and without a lower bound",
    "lower_bound": "the gate in the kernel with a lower bound",
    "chunk_states": "the state before each chunk in chunk",
    "beta_sigmoid": "the sigmoid of beta in the kernel",
    "neg_eigval": "2 * sigmoid(beta)",
    "chunk_size:16": "chunks of 16",
    "chunk_size:32": "chunks of 32",
    "batch_invariant": "chunk and prefill with batch_invariant=True",
    "several_tokens": "more than one token a row in decode",
    "fresh_rows": "has_initial_state in decode and prefill",
    "ragged_rows": "num_tokens in decode",
    "token_writes": "write_index [N, T] in decode",
    "drafts": "speculative steps: drafts in decode",
    "checkpoints": "checkpoint_index in prefill",
    "sync_free_varlen": "packed sequences without a host sync",
    "graph": "capture in a CUDA graph",
    "allocation_free": "decode with out= given takes no memory once it is warm",
    "compile": "torch.compile",
    "empty": "T = 0, B = 0",
    "device:cpu": "tensors on the CPU",
    "device:cuda": "tensors on a GPU",
}
"""Every capability a backend may declare unsupported, and what it means."""


def _power_of_two(n: int) -> bool:
    return n >= 16 and n & (n - 1) == 0


def _differentiable(call: SequenceCall | DecodeCall | PrefillCall) -> Iterable[torch.Tensor | None]:
    yield from (call.q, call.k, call.v, call.g, call.beta, call.A_log, call.dt_bias)
    if isinstance(call, SequenceCall):
        yield call.initial_state


def differentiated(call: SequenceCall | DecodeCall | PrefillCall) -> bool:
    """Return whether a gradient of a call's results may be asked for."""
    if not torch.is_grad_enabled():
        return False
    # under torch.vmap tensors do not say whether what they stand for requires a gradient
    if not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None:
        return True
    return any(x is not None and x.requires_grad for x in _differentiable(call))


def required(call: SequenceCall | DecodeCall | PrefillCall) -> set[str]:
    """Return the capabilities one call needs."""
    B, T, H, HV, K, V = call.dims
    options = call.options
    dtypes = {str(x.dtype).removeprefix("torch.") for x in (call.q, call.k, call.v)}
    needs = {f"layout:{options.layout.value}", *(f"dtype:{name}" for name in dtypes), f"device:{call.q.device.type}"}
    optional: Iterable[tuple[str, bool]] = (
        ("mixed_dtypes", len(dtypes) > 1),
        ("gva", HV != H),
        ("unequal_head_sizes", K != V),
        ("odd_head_sizes", not (_power_of_two(K) and _power_of_two(V))),
        ("head_size:64", 64 in (K, V)),
        ("head_size:128", 128 in (K, V)),
        ("head_size:other", not {K, V} <= {64, 128}),
        ("normalize_qk", options.normalize_qk),
        ("gate_given", not options.gate_in_kernel),
        ("beta_given", not options.beta_sigmoid),
        ("gate_in_kernel", options.gate_in_kernel),
        ("gate_without_rate", options.gate_in_kernel and call.A_log is None and options.lower_bound is None),
        ("lower_bound", options.lower_bound is not None),
        ("beta_sigmoid", options.beta_sigmoid),
        ("neg_eigval", options.neg_eigval),
        (f"chunk_size:{options.chunk_size}", options.chunk_size != 64),
        ("batch_invariant", options.batch_invariant),
        ("empty", B * T == 0),
        ("backward", differentiated(call)),
    )
    needs.update(name for name, wanted in optional if wanted)
    if isinstance(call, SequenceCall):
        state = call.initial_state
        if state is not None:
            needs.add("initial_state")
        if call.output_final_state:
            needs.add("final_state")
        if call.chunk_states is not None:
            needs.add("chunk_states")
    else:
        state = call.pool
    if state is not None:
        needs.add(f"state:{str(state.dtype).removeprefix('torch.')}")
    if not isinstance(call, DecodeCall) and call.cu_seqlens is not None:
        needs.add("varlen")
    if not isinstance(call, SequenceCall) and call.has_initial_state is not None:
        needs.add("fresh_rows")
    if isinstance(call, DecodeCall):
        needs.update(["several_tokens"] if T > 1 else [])
        needs.update(["ragged_rows"] if call.num_tokens is not None else [])
        needs.update(["drafts"] if call.drafts is not None else [])
        needs.update(["token_writes"] if call.write_index is not None and call.write_index.dim() == 2 else [])
    if isinstance(call, PrefillCall) and call.checkpoint_index is not None:
        needs.add("checkpoints")
    return needs
