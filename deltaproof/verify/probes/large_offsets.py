"""Large offsets: memory that starts more than 2**31 elements into a tensor

What it does
    Gives decode and prefill pools whose slots, or heads, lie far apart: five that lie 2**30 + 32 elements apart, so
    that a stride still fits into 32 bits and only its product with an index does not, and three that lie 2**31 + 64
    elements apart. In the full tier it gives chunk and recurrent q, k and v of three batch rows as far apart; and on a
    GPU a pack of tokens whose values, or keys, are more than 2**31 elements in one tensor, backward included. On a CPU
    the memory is reserved and only the touched pages exist; on a GPU it is real.

What it shows
    Offsets computed in 32 bits: the last slot, head or row is then 2**32 + 128 elements from the first, which a 32-bit
    offset takes for the 128th element. Of the long pack the last sequences lie behind element 2**31.

How it judges
    By the oracle, on the same values in a compact tensor; slots that no index names, and the memory right behind the
    first one, must be bit-identical. All tokens of the long pack are zero but those of the last sequences: these are
    held to the oracle, and outputs and gradients of all others must be exactly zero.

What it cannot see
    Writes to other places of the large memory of a pool: it is not read as a whole.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.verify.case import Case
from deltaproof.verify.inputs import dtype_of
from deltaproof.verify.observation import Observation, Skipped, same_bits
from deltaproof.verify.probe import Call, Context, Plan, Probe
from deltaproof.verify.probes import _long_pack

STEP = 2**30 + 32
"""Elements between slots or heads; four times this is 128 in 32 bits, while the stride itself fits into them."""
WIDE_STEP = 2**31 + 64
"""Elements between slots, heads or batch rows where the stride needs 64 bits; twice this is 128 in 32."""
SPAN = 2**32 + 128
"""Elements from the first slot, head or row to the last."""
CANARIES = 4096
"""Elements behind the first slot that must stay as they are."""
MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""A flag that the mmap module does not name in every Python."""


def large_memory(elements: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Return a 1-d tensor of zeros on the CPU, of anything on a GPU; raise Skipped where it cannot be had."""
    size = elements * dtype.itemsize
    words = f"{size / 1e9:.1f} GB"
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        if free < size + (1 << 30):
            raise Skipped(f"needs {words} of GPU memory, {free / 1e9:.1f} GB are free")
        return torch.empty(elements, dtype=dtype, device=device)
    private = getattr(mmap, "MAP_PRIVATE", None)
    if private is None:
        raise Skipped(f"needs {words} of lazily committed memory, which this system does not map")
    try:
        reserved = mmap.mmap(-1, size, flags=private | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except (OSError, ValueError, OverflowError) as error:
        raise Skipped(f"needs {words} of lazily committed address space: {error}") from error
    return torch.frombuffer(reserved, dtype=dtype)


class LargeOffsets(Probe):
    """Offsets beyond 2**31 elements."""

    name = "large_offsets"
    clause = "P5"
    clauses = ("P5", "P2")
    hazards = ("narrow-offset",)
    alone = True
    timeout = 180.0

    def cases(self, plan: Plan) -> Iterator[Case]:
        if plan.form in ("chunk", "recurrent"):
            if plan.full:
                base = Case(plan.form, label="batch-stride", B=3, T=20, H=1, HV=2, K=16, V=32, dtype="bfloat16")
                yield base
                yield base.but(layout="v_first", initial_state=False)
                if plan.device == "cuda":
                    yield from _long_pack.cases(plan.form)
            return
        base = Case(plan.form, label="slot-stride", B=2, T=2, H=1, HV=2, K=16, V=32, state_dtype="bfloat16", slots=5)
        if plan.form == "prefill":
            base = base.but(T=9)
        yield base.but(read=(4, -1))
        yield base.but(read=(0, -1), write=(4, 1), index_dtype="int32")
        yield base.but(label="head-stride", B=1, HV=5, layout="v_first", read=(1,), write=(2,))
        if plan.form == "decode":
            yield base.but(read=(0, 1), write=((4, -1), (1, -1)), index_dtype="int32")
        else:
            reached = base.but(T=33, B=1, chunk_size=16, checkpoint_every=16, index_dtype="int32")
            yield reached.but(read=(0,), write=(1,), checkpoints=((4, -1),))
        wide = base.but(label="wide-slot-stride", slots=3)
        yield wide.but(read=(2, -1))
        if plan.full:
            yield wide.but(read=(0, -1), write=(2, 1))
            yield wide.but(label="wide-head-stride", H=3, HV=3, layout="v_first", slots=4, read=(1, 3), write=(2, 3))
            yield wide.but(read=(2, 1), write=(-1, 0), layout="v_first", state_dtype="float16")
            yield wide.but(read=(2, 3), state_dtype="float32")
            yield base.but(read=(4, 1), write=(-1, 0), layout="v_first", index_dtype="int32")

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        if case.label in _long_pack.LABELS:
            yield from _long_pack.run(case, context, self.hazards[0])
            return
        call: Call = context.call(case)
        context.target.require(case.form, call)
        if isinstance(call, SequenceCall):
            outputs = context.run(case, self._spread(call, case, context))
            seen = list(context.judge(case, outputs, call, clause="P5", hazard=self.hazards[0]))
        else:
            matrix = case.K * case.V
            step = WIDE_STEP if case.label.startswith("wide") else STEP
            by_slot = case.label.endswith("slot-stride")
            strides, end = ((step, matrix), case.HV * matrix) if by_slot else ((matrix, step), case.slots * matrix)
            memory = large_memory(SPAN + end + CANARIES, dtype_of(case.state_dtype), context.device)
            pool = memory.as_strided(call.pool.shape, (*strides, call.pool.shape[3], 1)).copy_(call.pool)
            behind = memory[end : end + CANARIES].fill_(1.5)
            outputs = context.run(case, call.with_(pool=pool))
            call.pool.copy_(pool)
            canaries = behind.clone()
            del pool, behind, memory
            seen = list(context.judge(case, outputs, call, clause="P5", hazard=self.hazards[0]))
            what = "the memory right behind the first slot must stay as it is"
            seen.append(same_bits("pool", canaries, torch.full_like(canaries, 1.5), "P2", self.hazards[0], what))
        for item in seen:
            yield item if item.ok else replace(item, hazard=self.hazards[0])

    def _spread(self, call: SequenceCall, case: Case, context: Context) -> SequenceCall:
        """Return the call with the batch rows of q, k and v far apart, in one memory."""
        width = sum(x[0].numel() for x in (call.q, call.k, call.v))
        memory = large_memory(SPAN + width, call.q.dtype, context.device)
        at, views = 0, {}
        for name in ("q", "k", "v"):
            x = getattr(call, name)
            views[name] = memory.as_strided(x.shape, (WIDE_STEP, *x.stride()[1:]), at).copy_(x)
            at += x[0].numel()
        spread: SequenceCall = call.with_(**views)
        return spread


PROBE = LargeOffsets()
