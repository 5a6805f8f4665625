"""Calls of a delta rule's Triton operators, and what a public function makes of the same call.

For the tests in ``interpreted/``: on the CPU in Triton's interpreter, on a GPU as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.common.triton_language import INTERPRETED
from deltaproof.ops.common.triton_ops import TritonOperators, flat, flat_decode, flat_prefill
from tests.ops.gated_delta_rule.cases import normal

DEVICE = "cpu" if INTERPRETED else "cuda"
DIFFERENTIABLE = ("q", "k", "v", "g", "beta", "A_log", "dt_bias", "initial_state")
COMPILER = "aot_eager" if DEVICE == "cpu" else "inductor"
"""On a CPU inductor would need a C++ compiler."""


def placed(call: Any) -> Any:
    tensors = {name: x.to(DEVICE) for name, x in vars(call).items() if isinstance(x, torch.Tensor)}
    return call.with_(**tensors)


def requiring(call: SequenceCall) -> SequenceCall:
    tensors = {name: getattr(call, name) for name in DIFFERENTIABLE}
    return call.with_(**{name: x.clone().requires_grad_() for name, x in tensors.items() if x is not None})


def arguments(call: DecodeCall | PrefillCall) -> tuple[Any, ...]:
    """Return the arguments of a pool form's operator."""
    flattened = flat_decode if isinstance(call, DecodeCall) else flat_prefill
    return flattened(call, torch.empty_like(call.v))


def arriving(call: SequenceCall, *, final: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return cotangents of o and of the final state."""
    _, _, _, HV, K, V = call.dims
    do = normal(8, *call.v.shape).to(DEVICE, call.v.dtype)
    shape = (call.sequences, HV, *call.options.layout.inner_shape(K, V))
    return do, normal(9, *shape).to(DEVICE) if final else None


def faked(operator: Any, arguments: tuple[Any, ...]) -> Any:
    with FakeTensorMode() as mode:
        return operator(*(mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in arguments))


def looks(results: Any) -> list[tuple[Any, ...]]:
    return [(x.shape, x.dtype, x.stride(), x.device.type) for x in results]


def public(call: Any, **changes: Any) -> dict[str, Any]:
    """Return the arguments of a public function."""
    options = call.options
    given = {name: getattr(call, name) for name in ("q", "k", "v", "g", "beta", "A_log", "dt_bias")}
    if isinstance(call, SequenceCall):
        names: tuple[str, ...] = ("initial_state", "output_final_state", "cu_seqlens")
    elif isinstance(call, DecodeCall):
        names = ("pool", "read_index", "write_index", "num_tokens", "has_initial_state")
    else:
        names = ("pool", "read_index", "write_index", "has_initial_state", "cu_seqlens", "checkpoint_every")
        names += ("checkpoint_index",)
    given |= {name: getattr(call, name) for name in names}
    switches = {
        "use_qk_l2norm_in_kernel": options.normalize_qk,
        "use_gate_in_kernel": options.gate_in_kernel,
        "use_beta_sigmoid_in_kernel": options.beta_sigmoid,
        "allow_neg_eigval": options.neg_eigval,
        "state_layout": "v_first" if options.layout is StateLayout.V_FIRST else "k_first",
    }
    if call.g.dim() == 4:
        switches["lower_bound"] = options.lower_bound
        if "chunk_size" in changes:
            switches["safe_gate"] = options.safe_gate
    return given | switches | {"scale": options.scale, "backend": "triton", "validate": "shapes"} | changes


def differentiated(function: Any, call: SequenceCall, **changes: Any) -> dict[str, torch.Tensor]:
    """Return everything a public sequence form gives, gradients included."""
    call = requiring(call)
    given = public(call, **changes)
    o, final = function(**given)
    do, d_final = arriving(call)
    names = [name for name in DIFFERENTIABLE if given[name] is not None]
    found = torch.autograd.grad((o, final), [given[name] for name in names], (do, d_final))
    return {"o": o, "final_state": final} | dict(zip(names, found, strict=True))


def assert_nothing_is_different_without_gradients(operators: TritonOperators, call: SequenceCall) -> None:
    """The operator that keeps nothing for a backward pass is a proper one, and gives what the other gives."""
    torch.library.opcheck(operators.chunk_inference_op, flat(call))
    o, final = operators.chunk_inference_op(*flat(call))
    want, last, *_ = operators.chunk_op(*flat(call))
    assert torch.equal(o, want) and torch.equal(final, last)


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, x in want.items():
        assert got[name].dtype == x.dtype, name
        assert torch.equal(got[name], x), name
        assert bool(x.isfinite().all()) and bool((x != 0).any()), name


def compiling() -> Iterator[Callable[[Any], Any]]:
    """Yield, for a fixture, what compiles a function whole, and forget before and after what was compiled."""

    def compiled(function: Any) -> Any:
        return torch.compile(function, fullgraph=True, backend=COMPILER, dynamic=False)

    torch._dynamo.reset()
    yield compiled
    torch._dynamo.reset()
