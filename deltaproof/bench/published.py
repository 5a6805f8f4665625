"""Shapes and times of the gated delta rule that FlashQLA's authors published for an H200. Imports no torch.

Their table writes one sequence as ``1x8192``, but eight sequences of 1024 tokens as ``1024x8``, and two of different
lengths as ``4096+1024``. Their backwards are random splits of 8192 or 32768 tokens (``8k_4seq``). Here every shape has
its lengths as a list; the splits are those that their script draws. Times of another machine and of other versions
compare with nothing measured here; they are leads.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from deltaproof.bench.workload import SequenceWorkload

FILE = Path(__file__).with_name("published.json")


class PublishedShape(BaseModel):
    """One shape.

    Attributes:
        heads: q,k heads and value heads.
        lengths: tokens of each sequence.
        model: whose heads these are, where the table says it.
        ms: kernel -> milliseconds.
    """

    model_config = ConfigDict(extra="forbid")
    heads: tuple[int, int]
    lengths: tuple[int, ...]
    model: str = ""
    ms: dict[str, float]

    @property
    def workload(self) -> SequenceWorkload:
        """Return it as a workload."""
        return SequenceWorkload(heads=self.heads, lengths=self.lengths)


class Published(BaseModel):
    """The published table, with how its times were taken."""

    model_config = ConfigDict(extra="forbid")
    source: str
    gpu: str
    versions: str
    how: str
    prefill: list[PublishedShape]
    backward: list[PublishedShape]


@cache
def published() -> Published:
    """Return the table."""
    return Published.model_validate_json(FILE.read_bytes())
