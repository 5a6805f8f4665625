"""Calls of the causal convolution that are made to see its launches: data, one case a line or a product of lists."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from deltaproof.contracts.conventions import ConvLayout
from deltaproof.ops.causal_conv1d.calls import ConvDecodeCall, ConvOptions, ConvPrefillCall
from deltaproof.ops.causal_conv1d.triton_backend import TritonBackend

from .cases import DTYPES

BACKEND = TritonBackend()
"""Whose host code is run."""


@dataclass(frozen=True)
class ConvCase:
    """One call of a form.

    Attributes:
        full: bias, silu, ragged rows or packed sequences, and flags for fresh rows; else none of it.
        tokens: tokens a row.
        drafts: decode: room for drafts in a slot; then it is a speculative step.
    """

    form: str
    dtype: str
    C: int = 8192
    W: int = 4
    full: bool = True
    layout: str = "channels_first"
    tokens: int = 1
    state: str = "bf16"
    drafts: int = 0

    @property
    def label(self) -> str:
        """Return a short description."""
        words = ["conv", self.form, self.dtype, f"{self.C}x{self.W}", self.layout, "full" if self.full else "plain"]
        words += [f"t{self.tokens}", *([f"drafts{self.drafts}"] if self.drafts else [])]
        return " ".join([*words, *([] if self.state == "bf16" else [f"state-{self.state}"])])

    def facts(self) -> dict[str, Any]:
        """Return what a rule about spills may name."""
        return {**asdict(self), "label": self.label}

    def run(self) -> None:
        """Make the call."""
        N, T = 3, self.tokens
        layout = ConvLayout(self.layout)
        packed = self.form == "prefill" and self.full
        parts: dict[str, Any] = {
            "x": torch.empty((1, N * T, self.C) if packed else (N, T, self.C), dtype=DTYPES[self.dtype]),
            "weight": torch.empty(self.C, self.W, dtype=DTYPES[self.dtype]),
            "bias": torch.empty(self.C, dtype=DTYPES[self.dtype]) if self.full else None,
            "options": ConvOptions(self.full, layout),
            "pool": torch.empty(2 * N, *layout.inner_shape(self.C, self.W), dtype=DTYPES[self.state]),
            "read_index": torch.arange(N, dtype=torch.int32),
            "has_initial_state": torch.ones(N, dtype=torch.bool) if self.full else None,
        }
        if self.form == "decode":
            counts = torch.full((N,), T, dtype=torch.int32) if self.full else None
            if self.drafts:
                parts |= {
                    "drafts": torch.empty(2 * N, 2, self.drafts, self.C, dtype=DTYPES[self.dtype]),
                    "draft_half": torch.zeros(N, dtype=torch.int32),
                    "accepted": torch.ones(2 * N, dtype=torch.int32),
                }
            BACKEND.decode(ConvDecodeCall(**parts, num_tokens=counts))
        else:
            bounds = torch.arange(N + 1, dtype=torch.int32) * T if packed else None
            BACKEND.prefill(ConvPrefillCall(**parts, cu_seqlens=bounds))


def _table() -> list[ConvCase]:
    cases = []
    for form, tokens in (("decode", 1), ("prefill", 80)):
        for dtype in DTYPES:
            cases += [ConvCase(form, dtype, tokens=tokens), ConvCase(form, dtype, tokens=tokens, full=False)]
        cases += [ConvCase(form, "bf16", tokens=4, layout="time_first", state="fp32"), ConvCase(form, "bf16", 33, 2)]
    for dtype in DTYPES:
        cases += [
            ConvCase("decode", dtype, tokens=4, drafts=4),
            ConvCase("decode", dtype, tokens=2, drafts=3, full=False),
        ]
    return cases


CASES = tuple(_table())
