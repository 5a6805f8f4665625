"""Choices that differ between libraries: declared by every backend and caller, never guessed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class StateLayout(str, Enum):
    """Order of the two inner dimensions of a recurrent state (clause T1).

    Where K = V the order cannot be seen from a tensor's shape, so whoever holds a state carries its layout.
    """

    K_FIRST = "k_first"
    """State of shape ``[N, HV, K, V]``."""
    V_FIRST = "v_first"
    """State of shape ``[N, HV, V, K]``."""

    def inner_shape(self, K: int, V: int) -> tuple[int, int]:
        """Return the shape of one head's state, ``(K, V)`` or ``(V, K)``."""
        return (K, V) if self is StateLayout.K_FIRST else (V, K)


class ConvLayout(str, Enum):
    """Order of the two dimensions of a causal convolution's window."""

    CHANNELS_FIRST = "channels_first"
    """Window of shape ``[C, W - 1]``: a channel's inputs lie side by side."""
    TIME_FIRST = "time_first"
    """Window of shape ``[W - 1, C]``: a token's channels lie side by side."""

    def inner_shape(self, C: int, W: int) -> tuple[int, int]:
        """Return the shape of one window, ``(C, W - 1)`` or ``(W - 1, C)``."""
        return (C, W - 1) if self is ConvLayout.CHANNELS_FIRST else (W - 1, C)


class GateSpace(str, Enum):
    """Space in which a backend takes the gate."""

    LOG = "log"
    """``g`` is a log gate, ``g <= 0``; the state is multiplied by ``exp(g)``."""
    LINEAR = "linear"
    """``g`` is the factor itself, ``0 <= g <= 1``."""


class Padding(str, Enum):
    """What a slot index outside the pool means to a backend."""

    SKIP = "skip"
    """Any index outside ``[0, slots)`` is padding: no access, output 0 (clause P1)."""
    NEGATIVE = "negative"
    """Only a negative index is padding; an index past the last slot is undefined."""
    NONE = "none"
    """Every index is used as an address; there is no padding."""


@dataclass(frozen=True)
class Conventions:
    """The conventions of one backend.

    Attributes:
        layouts: layouts it takes, of states or of a convolution's windows; a call in another one is not made.
        gate: space of the gate it takes; calls are converted to it.
        float32_gates: it takes gates and write strengths that were computed beforehand in float32 alone; calls are
            converted to it.
        padding: its padding rule; calls that need more are counted as unsupported.
    """

    layouts: tuple[StateLayout | ConvLayout, ...] = (StateLayout.K_FIRST, StateLayout.V_FIRST)
    gate: GateSpace = GateSpace.LOG
    padding: Padding = Padding.SKIP
    float32_gates: bool = False
