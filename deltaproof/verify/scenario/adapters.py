"""What stands between the engine and the kernels: clean adapters, and such as were wrong in public.

An adapter gets a layer's pool and the indices of a step. ``Operators`` hands both to the public operators. The others
gather the rows' states, run a kernel that knows nothing of pools, and scatter the states back; the faulty ones differ
from the clean one in the address of a row's state alone. The convolution is right in all of them.

Shape legend: N rows, T tokens, S slots, C channels, H heads, K, V head sizes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from deltaproof.operators.arguments import Validate
from deltaproof.operators.causal_conv1d import causal_conv1d_prefill, causal_conv1d_update
from deltaproof.operators.gated_delta_rule import (
    chunk_gated_delta_rule,
    fused_recurrent_gated_delta_rule,
    gated_delta_rule_decode,
    gated_delta_rule_prefill,
)
from deltaproof.verify.scenario.model import RULE
from deltaproof.verify.scenario.workload import CHUNK

Inputs = Mapping[str, Any]


class Adapter(ABC):
    """The convolution and the delta rule of one layer against its pools.

    Attributes:
        validate: what the operators check: "values" as on any CPU, or "shapes" as on a GPU.
    """

    validate: Validate = "values"

    def convolve(
        self, form: str, x: torch.Tensor, weight: torch.Tensor, pool: torch.Tensor, step: Mapping[str, Any]
    ) -> torch.Tensor:
        """Run silu of the convolution and update the pool.

        Args:
            form: "decode" or "prefill".
            x: inputs [N, T, C], or [1, T, C] with cu_seqlens.
            weight: [C, W].
            pool: windows [S, C, W - 1].
            step: read_index [N], write_index [N] or [N, T], has_initial_state or None, num_tokens or cu_seqlens.

        Returns:
            y, of x's shape.
        """
        if form == "prefill":
            return causal_conv1d_prefill(x, weight, pool=pool, activation="silu", validate=self.validate, **step)
        write = step["write_index"]
        if write.dim() == 1:
            return causal_conv1d_update(x, weight, pool=pool, activation="silu", validate=self.validate, **step)
        # a window after each token; what is read is no slot that this step writes
        y = x
        for token in range(x.shape[1]):
            counts = step["num_tokens"]
            kept = torch.where(counts > token, write[:, token], -1)
            some = {"write_index": kept, "num_tokens": counts.clamp(max=token + 1)}
            y = causal_conv1d_update(
                x, weight, pool=pool, activation="silu", validate=self.validate, **{**step, **some}
            )
        return y

    @abstractmethod
    def rule(self, form: str, inputs: Inputs, pool: torch.Tensor, step: Mapping[str, Any]) -> torch.Tensor:
        """Run the delta rule and update the pool.

        Args:
            form: as in ``convolve``.
            inputs: q, k, v, g, beta, A_log, dt_bias.
            pool: states [S, H, K, V].
            step: as in ``convolve``.

        Returns:
            o, of v's shape.
        """
        ...


class Operators(Adapter):
    """Our operators take pool and indices as they are."""

    def rule(self, form: str, inputs: Inputs, pool: torch.Tensor, step: Mapping[str, Any]) -> torch.Tensor:
        if form == "decode":
            return gated_delta_rule_decode(**inputs, **RULE, pool=pool, **step)
        return gated_delta_rule_prefill(**inputs, **RULE, pool=pool, chunk_size=CHUNK, **step)


class GatherScatter(Adapter):
    """States are gathered, a plain kernel runs, states are scattered; padding rows touch nothing.

    The convolution works in place, as that of public engines does, so a padding row's inputs stay as they are and go on
    to the delta rule. Nobody checks which row reads what another one writes.
    """

    validate: Validate = "shapes"

    def convolve(
        self, form: str, x: torch.Tensor, weight: torch.Tensor, pool: torch.Tensor, step: Mapping[str, Any]
    ) -> torch.Tensor:
        y = super().convolve(form, x, weight, pool, step)
        return torch.where((step["read_index"] < 0)[:, None, None], x, y) if form == "decode" else y

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
            o, final = fused_recurrent_gated_delta_rule(**inputs, **RULE, initial_state=state, output_final_state=True)
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
