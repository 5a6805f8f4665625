"""Where a field's slots lie: one buffer a field, dead rows around every layer.

A layer is a view of ``capacity + 2`` rows. Rows 1 to capacity are slots; row 0 and the last row are dead. One more dead
row stands before the first layer. So an index of -1 taken as an address, Python's ``[-1]``, a clamp to 0 and
``capacity + 1`` all land where nobody's state is. Blocks start on 16 bytes, as clause P5 asks.
"""

from __future__ import annotations

import math

import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.state.fields import ConvField, Part, RecurrentField

ALIGNMENT = 16
BITS = {2: torch.int16, 4: torch.int32}


class FieldMemory:
    """The rows of one field, or of one part of a draft field.

    Args:
        field: what a row holds.
        layers: number of layers.
        capacity: slots a layer.
        device: where the memory lies.

    Attributes:
        all_rows: [1 + layers * (capacity + 2), *field.shape], dead rows included; row strides may have gaps.
        nbytes: bytes of the whole buffer.
        slot_bytes: bytes that one slot takes in all layers, gaps included.
    """

    def __init__(
        self, field: RecurrentField | ConvField | Part, layers: int, capacity: int, device: torch.device
    ) -> None:
        self.field, self.layers, self.capacity = field, layers, capacity
        unit = math.lcm(ALIGNMENT, field.dtype.itemsize) // field.dtype.itemsize
        block = -(-field.block // unit) * unit
        blocks = math.prod(field.shape) // field.block
        row = blocks * block
        rows = 1 + layers * self.rows_a_layer
        self._flat = torch.zeros(rows, row, dtype=field.dtype, device=device)
        strides = [math.prod(field.shape[at + 1 :]) for at in range(len(field.shape))]
        if blocks > 1:
            strides[0] = block
        self.all_rows = self._flat.as_strided((rows, *field.shape), (row, *strides))
        self.nbytes = self._flat.numel() * field.dtype.itemsize
        self.slot_bytes = layers * row * field.dtype.itemsize

    @property
    def rows_a_layer(self) -> int:
        """Rows of a layer's view, the two dead ones included."""
        return self.capacity + 2

    def layer(self, layer: int) -> torch.Tensor:
        """Return a layer's rows [capacity + 2, *field.shape], a view.

        Raises:
            ContractError: there is no such layer.
        """
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < self.layers:
            raise ContractError("layer", f"an int from 0 to {self.layers - 1}", repr(layer))
        first = 1 + layer * self.rows_a_layer
        return self.all_rows[first : first + self.rows_a_layer]

    def slot(self, slot: int) -> torch.Tensor:
        """Return a slot in every layer [layers, *field.shape], a view."""
        return self.all_rows[1 + slot :: self.rows_a_layer]

    def dead_rows(self) -> list[int]:
        """Return the rows of ``all_rows`` that no lease ever names."""
        first = [1 + layer * self.rows_a_layer for layer in range(self.layers)]
        return sorted([0, *first, *(row + self.capacity + 1 for row in first)])

    def rows_of(self, slot: int) -> list[int]:
        """Return the rows of ``all_rows`` that a slot takes, one a layer."""
        return [1 + layer * self.rows_a_layer + slot for layer in range(self.layers)]

    def poison(self, rows: list[int]) -> None:
        """Fill rows with NaN, gaps included, without a host sync."""
        for row in rows:
            self._flat[row].fill_(math.nan)

    def disturbed(self, rows: list[int]) -> list[int]:
        """Return those of the poisoned rows whose bits have changed since (syncs)."""
        if not rows:
            return []
        kind = BITS[self.field.dtype.itemsize]
        wanted = torch.full((1,), math.nan, dtype=self.field.dtype).view(kind).item()
        found = self._flat[torch.tensor(rows, device=self._flat.device)].view(kind)
        return [row for row, bad in zip(rows, (found != wanted).any(1).tolist(), strict=True) if bad]
