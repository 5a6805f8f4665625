"""The functions that stand in the place of transformers' own, with their parameters and our operators behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltaproof.contracts.errors import ContractError

if TYPE_CHECKING:
    import torch

    from deltaproof.backends.protocol import Backend

Rule = Callable[..., "tuple[torch.Tensor, torch.Tensor | None]"]


@dataclass
class Calls:
    """How often a replacement's functions ran.

    Attributes:
        chunk: calls of the chunked form (training, prefill).
        recurrent: calls of the recurrent form (one token against a cached state).
    """

    chunk: int = 0
    recurrent: int = 0


def _ignored() -> frozenset[str]:
    """Return the names of the arguments of attention that a model hands to every layer and this rule does not read."""
    from transformers.utils import TransformersKwargs

    return frozenset(TransformersKwargs.__annotations__) | {"use_cache"}


def _public(operator: str) -> tuple[Any, Any]:
    """Return an operator's chunked and recurrent functions."""
    if operator == "kda":
        from deltaproof.operators.kda import chunk_kda, fused_recurrent_kda

        return chunk_kda, fused_recurrent_kda
    from deltaproof.operators.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

    return chunk_gated_delta_rule, fused_recurrent_gated_delta_rule


def rules(operator: str, backend: Backend | None, calls: Calls) -> tuple[Rule, Rule]:
    """Build the two functions of an operator, with the parameters of transformers' own.

    Shapes: query, key [B, T, H, K], value [B, T, HV, V], g [B, T, HV], or [B, T, HV, K] of Kimi delta attention, beta
    [B, T, HV], initial_state [N, HV, K, V]. As in transformers, the final state is float32 whatever the initial state's
    dtype is: a cache in a lower precision rounds when it stores, and nowhere else.
    """
    ignored = _ignored()
    chunked, stepped = _public(operator)

    def options(
        initial_state: torch.Tensor | None, cu_seqlens: torch.Tensor | None, attention: dict[str, Any]
    ) -> dict[str, Any]:
        for name in attention:
            if name not in ignored:
                raise ContractError(
                    name, "an argument of the gated delta rule or of transformers' attention", "neither"
                )
        return {
            "initial_state": None if initial_state is None else initial_state.float(),
            # Kimi Linear hands the bounds of a packed batch on by the name that attention has for them
            "cu_seqlens": attention.get("cu_seq_lens_q") if cu_seqlens is None else cu_seqlens,
            "backend": backend,
        }

    def chunk(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        chunk_size: int = 64,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        *,
        cu_seqlens: torch.Tensor | None = None,
        **attention: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        result: tuple[torch.Tensor, torch.Tensor | None] = chunked(
            query, key, value, g, beta, output_final_state=output_final_state, chunk_size=chunk_size,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, **options(initial_state, cu_seqlens, attention),
        )  # fmt: skip
        calls.chunk += 1
        return result

    def recurrent(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        *,
        cu_seqlens: torch.Tensor | None = None,
        **attention: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        result: tuple[torch.Tensor, torch.Tensor | None] = stepped(
            query, key, value, g, beta=beta, output_final_state=output_final_state,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, **options(initial_state, cu_seqlens, attention),
        )  # fmt: skip
        calls.recurrent += 1
        return result

    for function in (chunk, recurrent):
        function.__name__ = function.__qualname__ = f"deltaproof_{function.__name__}_{operator}"
    return chunk, recurrent
