"""A pack of so many tokens that the last ones lie more than 2**31 elements into a tensor; GPUs only.

All tokens are zero but those of the last sequences, which nothing before them can reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.verify.case import Case
from deltaproof.verify.expected import Expected
from deltaproof.verify.observation import Observation, Skipped, compare
from deltaproof.verify.probe import Context
from deltaproof.verify.probes._runs import BACKWARD, drawn_cotangents, require

VALUES, KEYS = "long-values", "long-keys"
LABELS = (VALUES, KEYS, f"{VALUES}-{BACKWARD}", f"{KEYS}-{BACKWARD}")
LAST = {"chunk": (40, 0, 24), "recurrent": (5, 0, 3)}
"""Lengths of the sequences that are judged; the reference takes a second for a token of a recurrence's gradient."""
TAIL = 3
LENGTH = 2048
"""Tokens of a sequence of zeros, at most."""
COPIES = 12
"""Tensors of the largest size that a call may have at once, a backward's workspaces included."""
TOKENS = ("q", "k", "v", "g", "beta")
SLICE = 4096
"""Tokens looked at together."""


def cases(form: str) -> Iterator[Case]:
    """Yield the cases of a sequence form: 2**17 tokens with 64 heads of 256 values, or of 256 keys, are 2**31."""
    base = Case(form, VALUES, B=1, T=2**17 + 128, H=1, HV=64, K=16, V=256, dtype="bfloat16")
    keys = base.but(label=KEYS, H=64, K=256, V=16, layout="v_first")
    for case in (base, keys):
        yield case
        yield case.but(label=f"{case.label}-{BACKWARD}")


def run(case: Case, context: Context, hazard: str) -> Iterator[Observation]:
    """Make the call, with its backward if the label says so, and judge it."""
    backward = case.label.endswith(BACKWARD)
    if backward:
        require(context, BACKWARD)
    last = case.but(seqlens=LAST[case.form], tail=TAIL)
    _require_memory(case, context)
    try:
        yield from _judged(case, last, context, hazard, backward)
    except torch.cuda.OutOfMemoryError as error:
        raise Skipped(f"more GPU memory than {_words(_needed(case))}: {error}") from error
    finally:
        if context.device == "cuda":
            torch.cuda.empty_cache()


def _judged(case: Case, last: Case, context: Context, hazard: str, backward: bool) -> Iterator[Observation]:
    small = context.call(last)
    clean = context.call(last, device="cpu")
    call = _long(case, small)
    first = case.T - last.tokens
    cotangents = drawn_cotangents(last, context, small, "nan")
    leaves = {name: getattr(call, name) for name in (*TOKENS, "initial_state")}
    if backward:
        leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    outputs = context.run(case, call)
    found = {"o": outputs.o, "final_state": outputs.final_state}
    want = context.reference.sequence(clean, chunked=case.form == "chunk")
    if backward:
        do = torch.zeros_like(outputs.o)
        do[:, first:] = cotangents["do"]
        assert outputs.final_state is not None
        d_final = torch.zeros_like(outputs.final_state)
        d_final[-last.sequences :] = cotangents["dstate"]
        roots = (outputs.o, outputs.final_state)
        gradients = torch.autograd.grad(roots, list(leaves.values()), (do, d_final))
        del do, d_final
        found = dict(zip(leaves, gradients, strict=True))
        arriving = [x.cpu() for x in cotangents.values()]
        want = context.reference.gradients(clean, *arriving, chunked=case.form == "chunk")
    for name, expected in want.items():
        yield from _compared(name, found[name], expected, case, first, hazard)


def _compared(
    name: str, got: torch.Tensor | None, expected: Expected, case: Case, first: int, hazard: str
) -> Iterator[Observation]:
    """Compare the last sequences, rows behind them included; what lies before them must be zero."""
    if got is None:
        yield Observation(False, "S0", f"no {expected.name} was returned", hazard)
        return
    got = got.detach()
    state = name in ("initial_state", "final_state")
    cut = got.shape[0] - len(LAST[case.form]) if state else first
    before, after = (got[:cut], got[cut:]) if state else (got[:, :cut], got[:, cut:])
    seen = compare(after, expected, "P5", hazard, None if state else case.chunk_size)
    yield seen if seen.ok else replace(seen, message=f"{seen.message}, {cut} {'sequences' if state else 'tokens'} on")
    parts = before.split(SLICE, dim=0 if state else 1)
    wrong = sum(int((part != 0).sum()) for part in parts)
    text = f"{expected.name}: {wrong} elements of sequences of zeros are not 0" if wrong else ""
    yield Observation(not wrong, "P5", text, hazard)


def _long(case: Case, small: SequenceCall) -> SequenceCall:
    """Return the call with sequences of zeros in front of its own."""
    tokens = small.q.shape[1]
    count = case.T - tokens
    assert count > 0
    lengths = [LENGTH] * (count // LENGTH) + ([count % LENGTH] if count % LENGTH else [])

    def behind_zeros(x: torch.Tensor, size: int, dim: int) -> torch.Tensor:
        shape = list(x.shape)
        shape[dim] += size
        long = x.new_zeros(shape)
        long.narrow(dim, size, x.shape[dim]).copy_(x)
        return long

    assert small.cu_seqlens is not None and small.initial_state is not None
    starts = torch.tensor([0, *lengths]).cumsum(0).to(small.cu_seqlens)
    longer: SequenceCall = small.with_(
        **{name: behind_zeros(getattr(small, name), count, 1) for name in TOKENS},
        initial_state=behind_zeros(small.initial_state, len(lengths), 0),
        cu_seqlens=torch.cat([starts[:-1], small.cu_seqlens + count]),
    )
    return longer


def _needed(case: Case) -> int:
    """Return how many bytes a call may take."""
    return COPIES * case.T * case.HV * max(case.K, case.V) * 2


def _words(size: int) -> str:
    return f"{size / 1e9:.0f} GB"


def _require_memory(case: Case, context: Context) -> None:
    """Raise Skipped where the GPU has not enough memory for the call."""
    if context.device != "cuda":
        return
    free, _ = torch.cuda.mem_get_info()
    if free < _needed(case):
        raise Skipped(f"needs {_words(_needed(case))} of GPU memory, {_words(free)} are free")
