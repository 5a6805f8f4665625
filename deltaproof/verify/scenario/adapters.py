"""What stands between the engine and a kernel of the delta rule: clean adapters, and such as were wrong in public.

An adapter gets a layer's pool and the indices of a step. ``Operators`` hands both to the public operators. The others
gather the rows' states, run a kernel that knows nothing of pools, and scatter the states back; the faulty ones differ
from the clean one in the address of a row alone.

Shape legend: N rows, S slots, H heads, K, V head sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from deltaproof.operators.gated_delta_rule import (
    chunk_gated_delta_rule,
    fused_recurrent_gated_delta_rule,
    gated_delta_rule_decode,
    gated_delta_rule_prefill,
)
from deltaproof.verify.scenario.model import RULE
from deltaproof.verify.scenario.workload import CHUNK

Inputs = Mapping[str, torch.Tensor]


class Adapter:
    """The delta rule of one layer against its pool."""

    def rule(self, form: str, inputs: Inputs, pool: torch.Tensor, step: Mapping[str, Any]) -> torch.Tensor:
        """Run a step and update the pool.

        Args:
            form: "decode" or "prefill".
            inputs: q, k, v, g, beta, A_log, dt_bias.
            pool: states [S, H, K, V].
            step: read_index [N], write_index [N] and has_initial_state (or None), and num_tokens or cu_seqlens.

        Returns:
            o, of v's shape.
        """
        raise NotImplementedError


class Operators(Adapter):
    """Our operators take pool and indices as they are."""

    def rule(self, form: str, inputs: Inputs, pool: torch.Tensor, step: Mapping[str, Any]) -> torch.Tensor:
        if form == "decode":
            return gated_delta_rule_decode(**inputs, **RULE, pool=pool, **step)
        return gated_delta_rule_prefill(**inputs, **RULE, pool=pool, chunk_size=CHUNK, **step)


class GatherScatter(Adapter):
    """States are gathered, a plain kernel runs, states are scattered; padding rows touch nothing."""

    def rule(self, form: str, inputs: Inputs, pool: torch.Tensor, step: Mapping[str, Any]) -> torch.Tensor:
        read, write = step["read_index"].long(), step["write_index"].long()
        state = torch.zeros(len(read), *pool.shape[1:])
        at = self.read_offset(read, pool.shape[0], pool.stride(0))
        for row, offset in enumerate(at):
            if offset is not None:
                state[row] = _block(pool, offset)
        fresh = step.get("has_initial_state")
        if fresh is not None:
            state[~fresh] = 0
        if form == "decode":
            o, final = fused_recurrent_gated_delta_rule(
                **inputs, **RULE, initial_state=state, output_final_state=True
            )
        else:
            o, final = chunk_gated_delta_rule(
                **inputs, **RULE, initial_state=state, output_final_state=True, cu_seqlens=step["cu_seqlens"],
                chunk_size=CHUNK,
            )  # fmt: skip
        assert final is not None
        for row, offset in enumerate(self.write_offset(write, pool.shape[0], pool.stride(0))):
            if offset is not None:
                _block(pool, offset).copy_(final[row])
        return o

    def read_offset(self, index: torch.Tensor, slots: int, stride: int) -> list[int | None]:
        """Return how many elements behind the pool's first each row's state is read [N]; None reads nothing."""
        return [slot * stride if 0 <= slot < slots else None for slot in index.tolist()]

    def write_offset(self, index: torch.Tensor, slots: int, stride: int) -> list[int | None]:
        """Return the same for what is written."""
        return self.read_offset(index, slots, stride)


class RawNegative(GatherScatter):
    """An index is an address: -1 is the slot before the pool, which is another layer's last one."""

    def read_offset(self, index: torch.Tensor, slots: int, stride: int) -> list[int | None]:
        return [slot * stride for slot in index.tolist()]


class ClampedToFirst(GatherScatter):
    """A negative index is moved to slot 0, whose state is then advanced."""

    def read_offset(self, index: torch.Tensor, slots: int, stride: int) -> list[int | None]:
        return [max(slot, 0) * stride for slot in index.tolist()]


class ScatteredToLast(GatherScatter):
    """Padding rows start from zero, but ``pool[index] = states`` takes -1 for the last slot."""

    def write_offset(self, index: torch.Tensor, slots: int, stride: int) -> list[int | None]:
        return [slot % slots * stride for slot in index.tolist()]


class NarrowOffset(GatherScatter):
    """Slot times stride is formed in 32 bits."""

    def read_offset(self, index: torch.Tensor, slots: int, stride: int) -> list[int | None]:
        narrow = [(slot * stride + 2**31) % 2**32 - 2**31 for slot in index.tolist()]
        return [offset if slot >= 0 else None for slot, offset in zip(index.tolist(), narrow, strict=True)]


def _block(pool: torch.Tensor, offset: int) -> torch.Tensor:
    """Return the state that lies ``offset`` elements behind the first one, wherever that is."""
    return pool.as_strided(pool.shape[1:], pool.stride()[1:], pool.storage_offset() + offset)
