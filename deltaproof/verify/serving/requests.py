"""What a walk runs on, and what it knows of each request."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.calls import Drafts
from deltaproof.state import Lease


@dataclass(frozen=True)
class Sizes:
    """What a walk runs on.

    Attributes:
        H, HV, K, V: heads and head sizes.
        capacity: slots of the pool.
        dtype: dtype of q, k, v and beta.
        state_dtype: dtype of the pool.
        layout: layout of its states.
        gate_in_kernel: the gate is computed in the kernel.
        drafts: the most tokens of a speculative step; 0 for none.
    """

    H: int = 1
    HV: int = 2
    K: int = 8
    V: int = 5
    capacity: int = 7
    dtype: torch.dtype = torch.float32
    state_dtype: torch.dtype = torch.float32
    layout: StateLayout = StateLayout.K_FIRST
    gate_in_kernel: bool = False
    drafts: int = 0


Tokens = dict[str, Any]
"""q, k, v, g, beta of some tokens by name."""


@dataclass
class History:
    """What a request has seen, and its state as it is when the request is alone.

    Attributes:
        tokens: q, k, v, g, beta of every token, [t, heads, ...] a part.
        outputs: o of every token, as the shared pool gave it.
        line: the convolution's inputs [t, C] so far.
        alone: the state [1, HV, ., .] after the last token; None before the first.
    """

    tokens: list[Tokens] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    alone: torch.Tensor | None = None
    line: torch.Tensor | None = None

    @property
    def length(self) -> int:
        return sum(part["q"].shape[0] for part in self.tokens)

    def copy(self) -> History:
        return replace(
            self, tokens=[*self.tokens], outputs=[*self.outputs],
            alone=None if self.alone is None else self.alone.clone(),
        )  # fmt: skip


@dataclass
class Drafted:
    """What a request's last speculative step drafted.

    Attributes:
        tokens: the tokens.
        outputs: o of each.
        line: the convolution's inputs of each, or None.
        accepted: how many of them are; None until that is known.
    """

    tokens: Tokens
    outputs: torch.Tensor
    line: torch.Tensor | None = None
    accepted: int | None = None


@dataclass
class Request:
    """A request in flight.

    Attributes:
        name: for messages.
        lease: its slot.
        history: what it has seen.
        drafted: its last drafts, until the step that takes them in.
        memory: drafts of the request alone, a slot of its own by part.
    """

    name: str
    lease: Lease
    history: History
    drafted: Drafted | None = None
    memory: Drafts | None = None


def joined(parts: list[Tokens]) -> Tokens:
    """Return the tokens of several parts, one after another."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
