"""What a form of the causal convolution receives: one validated call, as data.

Shape legend: N rows or sequences, B batch, T tokens, C channels, W width in tokens, S slots, D
drafts a slot can hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from deltaproof.contracts.conventions import ConvLayout
from deltaproof.ops.common.allocation import Allocator

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ConvOptions:
    """Options that choose the function.

    Attributes:
        silu: the output goes through silu, x * sigmoid(x).
        layout: layout of the windows in the pool.
    """

    silu: bool = False
    layout: ConvLayout = ConvLayout.CHANNELS_FIRST


@dataclass(frozen=True, kw_only=True)
class _ConvCall:
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    options: ConvOptions = field(default_factory=ConvOptions)
    pool: torch.Tensor
    read_index: torch.Tensor
    write_index: torch.Tensor | None = None
    has_initial_state: torch.Tensor | None = None
    allocate: Allocator = field(default_factory=Allocator)

    @property
    def dims(self) -> tuple[int, int, int, int]:
        """Return ``(B, T, C, W)``; for decode B is N."""
        return (*self.x.shape, self.weight.shape[1])  # type: ignore[return-value]

    @property
    def writes(self) -> torch.Tensor:
        """Return the write index, which is the read index where the update is in place."""
        return self.read_index if self.write_index is None else self.write_index

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.x.device

    def required(self) -> set[str]:
        """Return the capabilities this call needs of a backend."""
        dtype, state = (str(x.dtype).removeprefix("torch.") for x in (self.x, self.pool))
        needs = {f"device:{self.x.device.type}", f"dtype:{dtype}", f"state:{state}"}
        if self.x.shape[0] * self.x.shape[1] == 0:
            needs.add("empty")
        return needs

    def with_(self, **changes: Any) -> Any:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class ConvDecodeCall(_ConvCall):
    """Form ``decode``: 1 to 16 tokens a row against a pool; returns ``y`` and updates ``pool`` in place.

    x [N, T, C]; weight [C, W]; bias [C]; pool [S, C, W - 1] or [S, W - 1, C]; read_index [N]; write_index None (in
    place) or [N]; num_tokens [N] or None; has_initial_state [N] bool or None; out [N, T, C] or None.

    With ``drafts`` [S, 2, D, C] it is a speculative step (clause P7): the ``accepted`` [S] inputs of the half
    ``draft_half`` [N] of the write slot come before the row's own; the window after them is kept, and the row's own go
    to the other half.
    """

    num_tokens: torch.Tensor | None = None
    out: torch.Tensor | None = None
    drafts: torch.Tensor | None = None
    draft_half: torch.Tensor | None = None
    accepted: torch.Tensor | None = None

    def required(self) -> set[str]:
        """Return the capabilities this call needs of a backend."""
        optional = {"ragged_rows": self.num_tokens is not None, "drafts": self.drafts is not None}
        return super().required() | {name for name, needed in optional.items() if needed}


@dataclass(frozen=True, kw_only=True)
class ConvPrefillCall(_ConvCall):
    """Form ``prefill``: whole sequences against a pool; returns ``y`` and updates ``pool`` in place.

    As in ConvDecodeCall with x [B, T, C]; cu_seqlens [N + 1] (then B = 1), else N = B.
    """

    cu_seqlens: torch.Tensor | None = None

    def required(self) -> set[str]:
        """Return the capabilities this call needs of a backend."""
        return super().required() | ({"varlen"} if self.cu_seqlens is not None else set())

    @property
    def sequences(self) -> int:
        """Return N."""
        return self.x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1


ConvCall = ConvDecodeCall | ConvPrefillCall


def time_first(windows: torch.Tensor, layout: ConvLayout) -> torch.Tensor:
    """Return windows [..., W - 1, C] of either layout, and of the first one back; a view."""
    return windows.mT if layout is ConvLayout.CHANNELS_FIRST else windows
