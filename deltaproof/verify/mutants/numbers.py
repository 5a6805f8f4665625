"""Mutants of the arithmetic: precision, exponents, options, and results that depend on what they must not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from deltaproof.ops.common.calls import DecodeCall, SequenceCall
from deltaproof.verify.mutants.model import ModelBackend
from deltaproof.verify.mutants.model.grid import Grid
from deltaproof.verify.mutants.model.memory import Call
from deltaproof.verify.mutants.mutant import Mutant


class StateInHalf(ModelBackend):
    """The state is carried in bf16 where the inputs are bf16."""

    def carried(self, state: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return state.to(dtype).float() if dtype == torch.bfloat16 else state


class TensorFloat(ModelBackend):
    """fp32 operands of a product keep ten bits, as TF32 does."""

    def operand(self, x: torch.Tensor) -> torch.Tensor:
        kept = (x.contiguous().view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)
        return kept.view(torch.float32)


class Truncated(ModelBackend):
    """bf16 results lose their lower bits; nothing rounds them."""

    def to_output(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if dtype != torch.bfloat16:
            return super().to_output(x, dtype)
        return (x.contiguous().view(torch.int32) & ~0xFFFF).view(torch.float32).to(dtype)


class SeriesInHalf(ModelBackend):
    """The inverse is a product of powers in bf16: (I - A)(I + A^2)(I + A^4)..."""

    def inverse(self, A: torch.Tensor) -> torch.Tensor:
        power = -A.bfloat16()
        unit = torch.eye(A.shape[-1], dtype=torch.bfloat16, device=A.device)
        result = unit + power
        for _ in range(A.shape[-1].bit_length() - 2):
            power = self.dot(power.float(), power.float()).bfloat16()
            result = self.dot(result.float(), (unit + power).float()).bfloat16()
        return result.float()


class MaskAfterExp(ModelBackend):
    """Decays are exponentiated for all pairs, and those above the diagonal multiplied by zero."""

    def decay(self, G: torch.Tensor) -> torch.Tensor:
        C = G.shape[-1]
        return self.exp(G[..., :, None] - G[..., None, :]) * torch.ones(C, C, device=G.device).tril()


class AnchorInTheFuture(ModelBackend):
    """A decay is split in two at the gate of a token in the middle of the chunk, a later one to half of them."""

    def decay(self, G: torch.Tensor) -> torch.Tensor:
        C = G.shape[-1]
        anchor = G[..., C // 2, None]
        pairs = self.exp(G - anchor)[..., :, None] * self.exp(anchor - G)[..., None, :]
        return torch.where(torch.ones(C, C, dtype=torch.bool, device=G.device).tril(), pairs, 0.0)


class SplitByBatch(ModelBackend):
    """A batch of several sequences is cut into shorter chunks than one alone."""

    def grid(self, form: str, call: Call) -> Grid:
        grid = super().grid(form, call)
        several = grid.programs > call.v.shape[2]
        return Grid.of(call, 16) if several and grid.chunk > 16 else grid


class GateUnclamped(ModelBackend):
    """Gates are summed as they are: after one of -1e4 the differences have few digits left."""

    def clamp_gate(self, g: torch.Tensor) -> torch.Tensor:
        return g


class NormUnguarded(ModelBackend):
    """A row is divided by its norm, which may be zero."""

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return self.total(x * x, -1)[..., None].sqrt()


class SigmoidDropped(ModelBackend):
    """decode takes logits for strengths."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        return super().decode(replace(call, options=replace(call.options, beta_sigmoid=False)))


class KeyedByShape(ModelBackend):
    """Results are kept, and found again by the shapes of the inputs."""

    def __init__(self) -> None:
        self.kept: dict[Any, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def recurrent(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        key = (call.q.shape, call.v.shape, call.q.dtype, call.v.dtype, call.options)
        if key not in self.kept:
            self.kept[key] = super().recurrent(call)
        o, final = self.kept[key]
        return o.clone(), None if final is None else final.clone()


class LiteralChunk(ModelBackend):
    """Gates are summed over 64 tokens, whatever the chunk size."""

    def cumulative(self, g: torch.Tensor) -> torch.Tensor:
        N, C = g.shape[1:]
        whole = g.reshape(g.shape[0], N * C)
        sums = [part.cumsum(-1) for part in whole.split(64, dim=1)] if N else [whole]
        return torch.cat(sums, 1).view(g.shape)


MUTANTS = (
    Mutant(
        "state-in-bf16",
        "low-precision-accumulate",
        "recurrent",
        "values",
        "fla #740: a running product was cast to the input dtype at every step",
        StateInHalf,
    ),
    Mutant(
        "tf32-operands",
        "low-precision-accumulate",
        "chunk",
        "values",
        "flashqla 6e5d2ea1: one of two terms lost its digits on the way, and what should cancel stayed",
        TensorFloat,
    ),
    Mutant(
        "truncated-output",
        "low-precision-accumulate",
        "recurrent",
        "values",
        "flashqla 6e5d2ea1: one of two terms went through bf16, and what should cancel stayed",
        Truncated,
    ),
    Mutant(
        "series-inverse-in-bf16",
        "low-precision-accumulate",
        "chunk",
        "correlated_keys",
        "vllm #53864: the inverse of the key matrix, taken in bf16, diverges",
        SeriesInHalf,
    ),
    Mutant(
        "mask-after-exp",
        "mask-by-multiply",
        "chunk",
        "extreme_gates",
        "fla #99: gate differences went through exp before the causal mask",
        MaskAfterExp,
    ),
    Mutant(
        "anchor-in-the-future",
        "unbounded-exp",
        "chunk",
        "causality",
        "tileops #1465: a decay split into two exponentials",
        AnchorInTheFuture,
        why="the values are right where neither factor overflows; only their last bits tell of later tokens",
    ),
    Mutant(
        "split-by-batch",
        "racing-store",
        "chunk",
        "invariance",
        "tileops #1730: results varied with the size of the grid",
        SplitByBatch,
    ),
    Mutant(
        "gate-unclamped",
        "unbounded-exp",
        "chunk",
        "extreme_gates",
        "flashinfer #3481: gates used without a bound",
        GateUnclamped,
    ),
    Mutant(
        "norm-unguarded",
        "unguarded-division",
        "recurrent",
        "extreme_gates",
        "tileops #715: the norm of an all-zero row was the divisor",
        NormUnguarded,
    ),
    Mutant(
        "sigmoid-dropped",
        "unthreaded-option",
        "decode",
        "values",
        "flashinfer #3720: a wrapper took an option, and the kernel did as it always does",
        SigmoidDropped,
    ),
    Mutant(
        "keyed-by-shape",
        "incomplete-cache-key",
        "recurrent",
        "values",
        "flashinfer #3908: what differed between two calls was not in the key",
        KeyedByShape,
    ),
    Mutant(
        "literal-chunk",
        "ignored-tile-parameter",
        "chunk",
        "ragged",
        "flashqla #12: a helper called without the chunk size fell back to 64",
        LiteralChunk,
    ),
)
