"""What a backend's form receives: one validated call, as data.

Shape legend: B batch, T tokens, H query/key heads, HV value heads, K key size, V value size, N sequences, S slots,
D drafts a slot can hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.allocation import Allocator

if TYPE_CHECKING:
    import torch


class Call(Protocol):
    """What selection and verification need of a call, whatever its operator."""

    @property
    def options(self) -> Any:
        """What chooses the function, ``layout`` of the states among it."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        ...

    def required(self) -> set[str]:
        """Return the capabilities this call needs of a backend."""
        ...


@dataclass(frozen=True)
class DeltaRuleOptions:
    """Options that choose the function or how it is computed, the same for every form.

    Attributes:
        scale: factor on the output, already resolved (K ** -0.5 where the caller gave none).
        normalize_qk: divide q and k by sqrt(sum(x ** 2) + 1e-6).
        gate_in_kernel: g is raw; the gate is -exp(A_log) * softplus(g + dt_bias).
        beta_sigmoid: beta holds logits.
        neg_eigval: 2 * sigmoid(beta); only with beta_sigmoid.
        layout: layout of initial, final and pooled states.
        chunk_size: 16, 32 or 64; used by chunk and prefill.
        batch_invariant: a sequence's results may not depend on its neighbours (clause I2).
        lower_bound: L < 0: the gate in the kernel is L * sigmoid(exp(A_log) * (g + dt_bias)) instead; for gates a
            channel.
        safe_gate: the caller's promise that log gates are at least -5; never changes the function.
    """

    scale: float
    normalize_qk: bool = False
    gate_in_kernel: bool = False
    beta_sigmoid: bool = False
    neg_eigval: bool = False
    layout: StateLayout = StateLayout.K_FIRST
    chunk_size: int = 64
    batch_invariant: bool = False
    lower_bound: float | None = None
    safe_gate: bool = False


class Drafts(NamedTuple):
    """What speculative steps keep of their tokens, by slot: two halves of up to D tokens each (clause P7).

    k [S, 2, D, H, K]; v [S, 2, D, HV, V]; g [S, 2, D, HV] or [S, 2, D, HV, K]; beta [S, 2, D, HV]; of the dtypes of the
    call's own; any slot stride.
    """

    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor


@dataclass(frozen=True)
class _Call:
    # Dynamo up to torch 2.11 takes fields in their order for arguments in theirs: what follows ``allocate`` is
    # keyword-only too
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    options: DeltaRuleOptions
    A_log: torch.Tensor | None = None
    dt_bias: torch.Tensor | None = None
    allocate: Allocator = field(default_factory=Allocator, kw_only=True)

    @property
    def dims(self) -> tuple[int, int, int, int, int, int]:
        """Return ``(B, T, H, HV, K, V)``."""
        B, T, H, K = self.q.shape
        return B, T, H, self.v.shape[2], K, self.v.shape[3]

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.q.device

    def required(self) -> set[str]:
        """Return the capabilities this call needs of a backend."""
        from deltaproof.ops.common.capabilities import required

        return required(self)  # type: ignore[arg-type]

    def with_(self, **changes: Any) -> Any:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class SequenceCall(_Call):
    """Forms ``chunk`` and ``recurrent``; returns ``(o, final_state or None)``.

    q, k [B, T, H, K]; v [B, T, HV, V]; g [B, T, HV], or [B, T, HV, K] of an operator with gates a channel; beta
    [B, T, HV]; A_log [HV]; dt_bias [HV] or [HV, K]; initial_state [N, HV, K, V] or [N, HV, V, K]; cu_seqlens [N + 1]
    (then B = 1), else N = B. o is [B, T, HV, V] in v's dtype; the final state has the initial state's dtype, float32
    where there is none, and shares no memory with it.

    Form ``chunk`` also fills ``chunk_states`` [B, M, HV, K, V] or [B, M, HV, V, K], where it is given, with the state
    before each chunk, in the final state's dtype: M chunks a sequence, or with cu_seqlens all chunks of all sequences
    one after another.
    """

    initial_state: torch.Tensor | None = None
    output_final_state: bool = False
    cu_seqlens: torch.Tensor | None = None
    chunk_states: torch.Tensor | None = None

    @property
    def sequences(self) -> int:
        """Return N."""
        return self.q.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1


@dataclass(frozen=True, kw_only=True)
class DecodeCall(_Call):
    """Form ``decode``: 1 to 16 tokens a row against a pool; returns ``o`` and updates ``pool`` in place.

    q, k [N, T, H, K]; v [N, T, HV, V]; g [N, T, HV] or [N, T, HV, K]; beta [N, T, HV]; pool [S, HV, K, V] or
    [S, HV, V, K]; read_index [N]; write_index None (in place), [N] or [N, T] (the state after each token);
    num_tokens [N] or None; has_initial_state [N] bool or None; out [N, T, HV, V] or None.

    With ``drafts`` it is a speculative step (clause P7): first the ``accepted`` [S] tokens of the half ``draft_half``
    [N] of the write slot (0 or 1; anything else: none) are replayed, then the state is stored, then the row's tokens
    run, and what they were goes to the other half.
    """

    pool: torch.Tensor
    read_index: torch.Tensor
    write_index: torch.Tensor | None = None
    num_tokens: torch.Tensor | None = None
    has_initial_state: torch.Tensor | None = None
    out: torch.Tensor | None = None
    drafts: Drafts | None = None
    draft_half: torch.Tensor | None = None
    accepted: torch.Tensor | None = None

    @property
    def writes(self) -> torch.Tensor:
        """Return the write index, which is the read index where the update is in place."""
        return self.read_index if self.write_index is None else self.write_index


@dataclass(frozen=True, kw_only=True)
class PrefillCall(_Call):
    """Form ``prefill``: whole sequences against a pool; returns ``o`` and updates ``pool`` in place.

    Tensors as in SequenceCall, pool and indices as in DecodeCall with write_index None or [N];
    checkpoint_index [N, M] names the slot that keeps the state after (j + 1) * checkpoint_every tokens.
    """

    pool: torch.Tensor
    read_index: torch.Tensor
    write_index: torch.Tensor | None = None
    has_initial_state: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    checkpoint_every: int | None = None
    checkpoint_index: torch.Tensor | None = None

    @property
    def sequences(self) -> int:
        """Return N."""
        return self.q.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1


DeltaRuleCall = SequenceCall | DecodeCall | PrefillCall
"""A call of any form of a delta rule."""
