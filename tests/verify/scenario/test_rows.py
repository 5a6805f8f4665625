"""Clean adapters change no token; every fault does on the plain pool, and none on ours."""

from __future__ import annotations

import pytest

from deltaproof.reports.scenario import Row, Verdict
from deltaproof.verify.scenario.faults import ENTRIES
from deltaproof.verify.scenario.runs import OURS, PLAIN, Place, Tokens, run
from deltaproof.verify.scenario.strategies import STRATEGIES

SEED, REQUESTS = 3, 16
EXTRA, NO_BUFFER, NO_CACHE = (strategy.name for strategy in STRATEGIES)
CLEAN = [entry.name for entry in ENTRIES if entry.clean]
SHOWS = {
    "raw -1": NO_BUFFER,
    "clamp to slot 0": NO_BUFFER,
    "scatter through [-1]": NO_BUFFER,
    "clear lost on abort": NO_CACHE,
    "snapshot shared with a writer": NO_BUFFER,
    "zero-draft row": NO_BUFFER,
    "offset in 32 bits": NO_BUFFER,
}
"""A strategy with which each fault shows in these few requests."""


def row(strategy: str, adapter: str, pool: Place, reference: Tokens) -> Row:
    found = run(strategy, adapter, pool, SEED, REQUESTS, reference)
    if found.verdict is Verdict.SKIPPED:
        pytest.skip(str(found.named))
    return found


def test_every_fault_has_a_row():
    assert set(SHOWS) == {entry.name for entry in ENTRIES if not entry.clean}


@pytest.mark.parametrize("pool", [PLAIN, OURS])
@pytest.mark.parametrize(
    ("strategy", "adapter"),
    [(EXTRA, "operators"), (NO_BUFFER, "gather/scatter"), (NO_CACHE, "operators"), (NO_BUFFER, "speculation"),
     (NO_BUFFER, "far slots")],
)  # fmt: skip
def test_a_clean_adapter_changes_nothing(strategy: str, adapter: str, pool: Place, reference: Tokens):
    found = row(strategy, adapter, pool, reference)
    assert found.clean and found.verdict is Verdict.SAME
    assert (found.requests, found.unserved, found.changed, found.touched) == (REQUESTS, 0, 0, 0)
    assert found.named is None
    assert (found.prefix_hits > 0) == (strategy != NO_CACHE)


@pytest.mark.parametrize("adapter", list(SHOWS))
def test_a_fault_changes_tokens_on_the_plain_pool(adapter: str, reference: Tokens):
    found = row(SHOWS[adapter], adapter, PLAIN, reference)
    assert found.verdict is Verdict.CHANGED
    assert found.changed > 0 and found.first is not None
    assert found.requests == REQUESTS


@pytest.mark.parametrize("adapter", list(SHOWS))
def test_a_fault_changes_none_on_ours(adapter: str, reference: Tokens):
    found = row(SHOWS[adapter], adapter, OURS, reference)
    assert found.changed == 0 and found.touched == 0
    assert found.verdict in (Verdict.NAMED, Verdict.STOPPED)
    assert (found.named is not None) == (found.verdict is Verdict.NAMED)
    assert found.requests + found.unserved == REQUESTS
    assert (found.unserved > 0) == (found.stopped_at is not None)


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ("raw -1", "the row before layer 0"),
        ("clamp to slot 0", "row 0 of layer 0"),
        ("scatter through [-1]", "row 13 of layer 0"),
        ("snapshot shared with a writer", "start: expected a snapshot of this pool"),
        ("offset in 32 bits", "written though nobody holds it"),
    ],
)
def test_our_pool_names_what_was_tried(adapter: str, words: str, reference: Tokens):
    found = row(NO_BUFFER, adapter, OURS, reference)
    assert found.verdict is Verdict.NAMED and words in str(found.named)
