"""The weights in the package do what they were trained for, by way of the recurrent state."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from deltaproof.verify.scenario import recall
from deltaproof.verify.scenario.model import WEIGHTS, RecallModel, Training, load

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))

from train_recall import measure


def test_the_weights_recall_and_only_by_the_recurrent_state():
    found = measure(load(), 1024, seed=1)
    assert found["exact"] >= 0.99 and found["single"] >= 0.998
    # what is left is UNKNOWN, which a state of zero says to everything
    blind = measure(load(), 128, seed=1, forget=True)
    assert blind["single"] < recall.UNTOLD + 0.1 and blind["exact"] < 0.01


def test_the_weights_are_small():
    assert WEIGHTS.stat().st_size < 2_000_000


def test_an_untrained_model_does_not_recall():
    torch.manual_seed(0)
    assert measure(RecallModel(recall.VOCABULARY).eval(), 128)["single"] < 0.2


def test_training_goes_through_our_backward():
    torch.manual_seed(0)
    model = RecallModel(recall.VOCABULARY)
    tokens, places = recall.draw(2, 6, 4, torch.Generator().manual_seed(0))
    model(tokens[:, :-1], Training())[:, places].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("pairs", [4, 24])
def test_sequences_tell_what_they_ask(pairs: int):
    tokens, places = recall.draw(16, pairs, 4, torch.Generator().manual_seed(pairs))
    for row in tokens.tolist():
        assert row[0] == recall.START and row[2 * pairs + 1] == recall.ASK
        told = dict(zip(row[1 : 2 * pairs + 1 : 2], row[2 : 2 * pairs + 2 : 2], strict=True))
        assert len(told) == pairs
        asked = [row[place] for place in places]
        assert len(set(asked)) == len(asked)
        assert [row[place + 1] for place in places] == [told.get(key, recall.UNKNOWN) for key in asked]
    assert (tokens == recall.UNKNOWN).any()
