"""Cases for the kernels for Hopper, and what the walk over chunks owes to every delta rule.

For the tests in ``interpreted/``: on the CPU in an interpreter of Gluon, on a GPU as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from deltaproof.ops.common.allocation import forced_init, poison_
from deltaproof.ops.common.hopper_tables import WalkTable
from deltaproof.verify.case import Case


def made(form: str, **changes: Any) -> Case:
    """Return a case of two chunks, with grouped heads."""
    sizes = {"B": 1, "T": 75, "H": 1, "HV": 2, "K": 64, "V": 64, "dtype": "bfloat16", "chunk_size": 64}
    return Case(form, **sizes | changes)


def launched(monkeypatch: pytest.MonkeyPatch, table: WalkTable) -> None:
    """Have the walk launched like this."""
    monkeypatch.setattr(WalkTable, "of", classmethod(lambda cls, *_: table))


def assert_appended_tokens_change_no_bit(backend: Any, call: Any, lengths: Iterable[int]) -> None:
    """Outputs of a call's first tokens are those of the whole call."""
    whole, _ = backend.chunk(call)
    for T in lengths:
        shorter = {name: getattr(call, name)[:, :T] for name in ("q", "k", "v", "g", "beta")}
        o, _ = backend.chunk(call.with_(**shorter))
        assert torch.equal(o, whole[:, :T]), T


def assert_rows_behind_reach_nothing(backend: Any, call: Any, cut: int) -> None:
    """NaN in a pack's second sequence and its tail does not reach the first and the third.

    The call's sequences have ``cut``, 70 and 64 + ``cut`` tokens; 40 follow.
    """
    clean, final = backend.chunk(call)
    poisoned = {name: getattr(call, name).clone() for name in ("q", "k", "v")}
    for x in poisoned.values():
        x[:, cut : cut + 70], x[:, -40:] = float("nan"), float("nan")
    # what lies behind a tensor's rows, and what is made of rows that nobody has, is poison too
    with forced_init(poison_):
        o, state = backend.chunk(call.with_(**poisoned))
    assert o[:, cut : cut + 70].isnan().all() and state[1].isnan().any()
    for begin, end in ((0, cut), (cut + 70, 134 + 2 * cut)):
        assert torch.equal(o[:, begin:end], clean[:, begin:end]), (begin, end)
    assert torch.equal(state[[0, 2]], final[[0, 2]])
