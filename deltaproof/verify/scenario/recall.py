"""Associative recall: pairs of a key and a value, then keys whose values are asked for.

A sequence reads ``START k v k v … ASK k v k v …``; the values after ``ASK`` are what the model has to say.
"""

from __future__ import annotations

import torch

KEYS, VALUES = 32, 32
START, ASK = KEYS + VALUES, KEYS + VALUES + 1
VOCABULARY = KEYS + VALUES + 2
MOST_PAIRS, MOST_ASKED = 24, 8


def draw(
    batch: int, pairs: int, asked: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw sequences.

    Returns:
        tokens [batch, 2 * pairs + 2 + 2 * asked], and the places of the keys asked [asked], whose next token is the
        answer.
    """
    order = torch.rand(batch, KEYS, generator=generator).argsort(-1)
    keys = order[:, :pairs]
    values = KEYS + torch.randint(VALUES, (batch, pairs), generator=generator)
    picked = torch.rand(batch, pairs, generator=generator).argsort(-1)[:, :asked]
    told = torch.stack([keys, values], -1).flatten(1)
    answers = torch.stack([keys.gather(1, picked), values.gather(1, picked)], -1).flatten(1)
    mark = torch.ones(batch, 1, dtype=torch.long)
    tokens = torch.cat([START * mark, told, ASK * mark, answers], 1)
    return tokens, 2 * pairs + 2 + 2 * torch.arange(asked)
