"""Associative recall: pairs of a key and a value, then keys whose values are asked for.

A sequence reads ``START k v k v … ASK k v k v …``; the values after ``ASK`` are what the model has to say. Some of the
keys asked have not been told, and the answer is ``UNKNOWN``: so what is left of another request's state shows.
"""

from __future__ import annotations

import torch

KEYS, VALUES = 32, 32
START, ASK, UNKNOWN = KEYS + VALUES, KEYS + VALUES + 1, KEYS + VALUES + 2
VOCABULARY = KEYS + VALUES + 3
MOST_PAIRS, MOST_ASKED = 24, 8
UNTOLD = 0.3
"""Share of the keys asked that have not been told, about."""


def draw(batch: int, pairs: int, asked: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw sequences.

    Returns:
        tokens [batch, 2 * pairs + 2 + 2 * asked], and the places of the keys asked [asked], whose next token is the
        answer.
    """
    keys = torch.rand(batch, KEYS, generator=generator).argsort(-1)
    values = KEYS + torch.randint(VALUES, (batch, KEYS), generator=generator)
    values[:, pairs:] = UNKNOWN
    # told keys first, but for some that change places with untold ones
    told, untold = (torch.rand(batch, n, generator=generator).argsort(-1) for n in (pairs, KEYS - pairs))
    other = torch.rand(batch, asked, generator=generator) < UNTOLD
    spread = untold.repeat(1, -(-asked // untold.shape[1]))[:, :asked] + pairs
    picked = torch.where(other & (torch.arange(asked) < untold.shape[1]), spread, told[:, :asked])
    begin = torch.stack([keys[:, :pairs], values[:, :pairs]], -1).flatten(1)
    answers = torch.stack([keys.gather(1, picked), values.gather(1, picked)], -1).flatten(1)
    mark = torch.ones(batch, 1, dtype=torch.long)
    tokens = torch.cat([START * mark, begin, ASK * mark, answers], 1)
    return tokens, 2 * pairs + 2 + 2 * torch.arange(asked)
