"""Memory as a kernel sees it: an address, a mask, and no notion of where a tensor ends.

An address is an element offset from a tensor's first element. One that leaves the tensor reaches whatever lies there
in the same allocation, as it does on a card. Only at the ends of the allocation does the emulation stop: a load takes
the nearest element, a store is lost.
"""

from __future__ import annotations

import torch


def block(size: int) -> int:
    """Return the extent of a block that holds ``size`` elements: the next power of two, at least 16."""
    return max(16, 1 << (size - 1).bit_length())


class Pointer:
    """A tensor's first element, and the allocation around it.

    Attributes:
        memory: every element of the allocation, one-dimensional.
        base: where in it the tensor starts.
    """

    def __init__(self, x: torch.Tensor) -> None:
        self.memory = x.detach().new_empty(0).set_(x.untyped_storage())
        self.base = int(x.storage_offset())

    def load(self, offsets: torch.Tensor, mask: torch.Tensor | None = None, other: float = 0.0) -> torch.Tensor:
        """Return what lies at ``offsets`` (int64, any shape), ``other`` where ``mask`` is False; floats in fp32."""
        if self.memory.numel() == 0:
            found = self.memory.new_zeros(offsets.shape)
        else:
            place = (offsets + self.base).clamp(0, self.memory.numel() - 1)
            found = self.memory.index_select(0, place.reshape(-1)).view(place.shape)
        if found.is_floating_point():
            found = found.float()
        return found if mask is None else torch.where(mask, found, other)

    def store(self, offsets: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Store ``values`` at ``offsets`` where ``mask`` holds; the two broadcast against each other."""
        place = offsets + self.base
        kept = (place >= 0) & (place < self.memory.numel())
        if mask is not None:
            kept = kept & mask
        place, kept, values = torch.broadcast_tensors(place, kept, values.to(self.memory.dtype))
        lanes = kept.reshape(-1).nonzero().squeeze(1)
        place, values = (x.reshape(-1).index_select(0, lanes) for x in (place, values))
        self.memory.index_put_((place,), values)
