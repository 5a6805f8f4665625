"""Mutants of the outputs: taps at the wrong token, options that are lost, sums in few digits, memory nobody wrote."""

from __future__ import annotations

from typing import Any

import torch

from deltaproof.ops.causal_conv1d.calls import ConvCall, ConvDecodeCall, ConvPrefillCall
from deltaproof.verify.mutants.conv.model import ConvModel, Rows
from deltaproof.verify.mutants.memory import dense
from deltaproof.verify.mutants.mutant import Mutant


class AcrossBounds(ConvModel):
    """Taps before a packed sequence reach into the one before it; only the first has a window."""

    def tap(
        self, call: ConvCall, rows: Rows, old: torch.Tensor, place: torch.Tensor, valid: torch.Tensor, j: int
    ) -> torch.Tensor:
        found = super().tap(call, rows, old, place, valid, j)
        back = (place - (call.dims[3] - 1) + j).expand_as(valid)
        packed = valid & (back < 0) & (rows.start[:, None] + back >= 0)
        return torch.where(packed[..., None], self.load_tokens(call, rows, back, packed), found)


class FutureToken(ConvModel):
    """The taps are centred: they reach one token into the future."""

    def tap(
        self, call: ConvCall, rows: Rows, old: torch.Tensor, place: torch.Tensor, valid: torch.Tensor, j: int
    ) -> torch.Tensor:
        later = place + 1
        back = later - (call.dims[3] - 1) + j
        return super().tap(call, rows, old, later, valid & (back < rows.length[:, None]), j)


class TapsReversed(ConvModel):
    """A true convolution: the first weight meets the present token."""

    def weight_at(self, j: int, W: int) -> int:
        return W - 1 - j


class BiasDropped(ConvModel):
    """The bias is taken and not added."""

    def bias(self, call: ConvCall) -> torch.Tensor | None:
        return None


class SiluDropped(ConvModel):
    """silu is asked for and not applied."""

    def silu(self, call: ConvCall) -> bool:
        return False


class SiluAlways(ConvModel):
    """silu is applied, whether or not it is asked for."""

    def silu(self, call: ConvCall) -> bool:
        return True


class SumInInput(ConvModel):
    """The sum is kept in the dtype of x."""

    def total(self, call: ConvCall, taps: list[torch.Tensor]) -> torch.Tensor:
        bias, dtype = self.bias(call), call.x.dtype
        total = torch.zeros_like(taps[0], dtype=dtype) if bias is None else bias.to(dtype).expand_as(taps[0])
        for j, term in enumerate(taps):
            total = (total.float() + call.weight[:, j].float() * term).to(dtype)
        return total.float()


class ProductsInInput(ConvModel):
    """Where x and the weights are of one dtype, each product is rounded to it before it is added in fp32."""

    def total(self, call: ConvCall, taps: list[torch.Tensor]) -> torch.Tensor:
        if call.x.dtype != call.weight.dtype:
            return super().total(call, taps)
        bias = self.bias(call)
        total = torch.zeros_like(taps[0]) if bias is None else bias.float().expand_as(taps[0])
        for j, term in enumerate(taps):
            total = total + (call.weight[:, j] * term.to(call.x.dtype)).float()
        return total


class OrderByBatch(ConvModel):
    """A batch of several rows is summed from the last tap on, one alone from the first."""

    def total(self, call: ConvCall, taps: list[torch.Tensor]) -> torch.Tensor:
        if taps[0].shape[0] == 1:
            return super().total(call, taps)
        bias = self.bias(call)
        total = torch.zeros_like(taps[0]) if bias is None else bias.float().expand_as(taps[0])
        for j in reversed(range(len(taps))):
            total = total + call.weight[:, j].float() * taps[j]
        return total


class WholeBlocks(ConvModel):
    """Outputs are stored in blocks of 16 channels, and what is left over is not."""

    def store_outputs(self, rows: Rows, out: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> None:
        super().store_outputs(rows, out, y[..., : y.shape[2] // 16 * 16], mask)


class PaddingUnwritten(ConvModel):
    """Padding rows are skipped: their outputs stay as they were allocated."""

    def stored(self, rows: Rows, inside: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return inside & rows.live[:, None]


class CountedOnly(ConvModel):
    """Tokens past a row's number are skipped: their outputs stay as they were allocated."""

    def stored(self, rows: Rows, inside: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return valid | (inside & ~rows.live[:, None])


class TailUnwritten(ConvModel):
    """Rows behind the last sequence are left as they were allocated."""

    def zero_tail(self, call: ConvCall, out: torch.Tensor) -> None:
        return None


class TailCopied(ConvModel):
    """Rows behind the last sequence pass the input on."""

    def zero_tail(self, call: ConvCall, out: torch.Tensor) -> None:
        if isinstance(call, ConvPrefillCall) and call.cu_seqlens is not None:
            end = int(call.cu_seqlens[-1])
            out[:, end:] = call.x[:, end:]


class CountIgnored(ConvModel):
    """num_tokens is dropped: every row runs all T tokens."""

    def counts(self, call: ConvCall, whole: torch.Tensor) -> torch.Tensor:
        return whole


class CountTrusted(ConvModel):
    """num_tokens is believed: a window is cut behind tokens that the row does not have."""

    def counts(self, call: ConvCall, whole: torch.Tensor) -> torch.Tensor:
        if isinstance(call, ConvPrefillCall) or call.num_tokens is None:
            return whole
        return call.num_tokens.long()


class InputOverwritten(ConvModel):
    """The result is stored over x too."""

    def decode(self, call: ConvDecodeCall) -> torch.Tensor:
        y = super().decode(call)
        call.x.copy_(y)
        return y


class DenseInput(ConvModel):
    """x is walked as if it were contiguous."""

    def token_strides(self, call: ConvCall) -> tuple[int, ...]:
        return dense(call.x.shape)


class TunedInPlace(ConvModel):
    """The first call of a shape runs the kernel several times, each on the windows of the last."""

    def __init__(self) -> None:
        self.tuned: set[Any] = set()

    def decode(self, call: ConvDecodeCall) -> torch.Tensor:
        if call.x.shape not in self.tuned:
            self.tuned.add(call.x.shape)
            super().decode(call)
        return super().decode(call)


class KeyedByShape(ConvModel):
    """Outputs are kept, and found again by shapes, dtypes and options."""

    def __init__(self) -> None:
        self.kept_outputs: dict[Any, torch.Tensor] = {}

    def run(self, call: ConvCall, out: torch.Tensor | None) -> torch.Tensor:
        y = super().run(call, out)
        key = (call.x.shape, call.x.dtype, call.weight.shape, call.weight.dtype, call.bias is None, call.options)
        return self.kept_outputs.setdefault(key, y).clone()


OPTION, DIGITS, UNWRITTEN = "unthreaded-option", "low-precision-accumulate", "unwritten-output"

MUTANTS = (
    Mutant(
        "taps-across-sequences",
        OPTION,
        "prefill",
        "conv_values",
        "mamba 8ffd905c: the bounds of packed sequences did not reach the convolution, which ran over them",
        AcrossBounds,
    ),
    Mutant(
        "future-token",
        "unmasked-load",
        "prefill",
        "conv_values",
        "none known: taps centred on the token, as a convolution of images has them",
        FutureToken,
        why="the mask that is missing is causality's",
    ),
    Mutant(
        "taps-reversed",
        "missing-base-offset",
        "decode",
        "conv_values",
        "none known: a convolution in the strict sense, where a correlation is meant",
        TapsReversed,
    ),
    Mutant(
        "bias-dropped",
        OPTION,
        "decode",
        "conv_values",
        "fla #427: conv_bias was accepted and not handed on",
        BiasDropped,
    ),
    Mutant(
        "silu-dropped",
        OPTION,
        "prefill",
        "conv_values",
        "vllm-gaudi #1484: one of silu's two names was taken for no activation",
        SiluDropped,
    ),
    Mutant(
        "silu-always",
        OPTION,
        "decode",
        "conv_values",
        "sgl-kernel-npu #449: a fallback applied silu whatever activation was asked for",
        SiluAlways,
    ),
    Mutant(
        "sum-in-input-dtype",
        DIGITS,
        "prefill",
        "conv_values",
        "fla #740: a running value was cast to the input dtype at every step",
        SumInInput,
    ),
    Mutant(
        "products-in-input-dtype",
        DIGITS,
        "decode",
        "conv_values",
        "vllm #52887: products of bf16 were rounded to bf16 before they were summed in fp32",
        ProductsInInput,
    ),
    Mutant(
        "order-by-batch",
        "racing-store",
        "decode",
        "conv_rows",
        "tileops #1730: results varied with the size of the grid",
        OrderByBatch,
    ),
    Mutant(
        "whole-blocks-stored",
        UNWRITTEN,
        "prefill",
        "conv_values",
        "none known: a grid of whole blocks of channels",
        WholeBlocks,
    ),
    Mutant(
        "padding-unwritten",
        UNWRITTEN,
        "decode",
        "conv_rows",
        "sglang #30974: padding rows were skipped, and their outputs passed on as they were allocated",
        PaddingUnwritten,
    ),
    Mutant(
        "uncounted-unwritten",
        UNWRITTEN,
        "decode",
        "conv_rows",
        "fla #967: skipped rows in an output from empty_like",
        CountedOnly,
    ),
    Mutant(
        "tail-unwritten",
        UNWRITTEN,
        "prefill",
        "conv_rows",
        "flashqla #36: the padding chunk was not cleared, and garbage was returned",
        TailUnwritten,
    ),
    Mutant(
        "tail-copied",
        UNWRITTEN,
        "prefill",
        "conv_values",
        "flashqla #36: the padding chunk was not cleared, and garbage was returned",
        TailCopied,
    ),
    Mutant(
        "token-count-ignored",
        OPTION,
        "decode",
        "conv_values",
        "fla #1088: lengths dropped in one branch, so packed input ran as one long sequence",
        CountIgnored,
    ),
    Mutant(
        "token-count-trusted",
        "unmasked-load",
        "decode",
        "conv_slots",
        "fla #1143: rows past the end of a sequence were read from the next one",
        CountTrusted,
    ),
    Mutant(
        "input-overwritten",
        "aliased-slot",
        "decode",
        "conv_rows",
        "tensorrt-llm #13103: a review saw a special case store its result to x, where its sibling stores to out",
        InputOverwritten,
        why="the memory that is shared is an input",
    ),
    Mutant(
        "dense-input",
        "assumed-contiguous",
        "prefill",
        "conv_rows",
        "fla #627: x was walked as dense rows, and nobody made it contiguous",
        DenseInput,
    ),
    Mutant(
        "tuned-in-place",
        "autotuned-in-place",
        "decode",
        "conv_rows",
        "fla ca89d201: the tuner ran a kernel that shifts the window in place, and restored nothing",
        TunedInPlace,
    ),
    Mutant(
        "keyed-by-shape",
        "incomplete-cache-key",
        "decode",
        "conv_values",
        "flashinfer #3908: what differed between two calls was not in the key",
        KeyedByShape,
    ),
)
