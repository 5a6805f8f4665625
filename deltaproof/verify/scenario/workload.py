"""Requests that arrive over time, share prefixes, and are sometimes given up."""

from __future__ import annotations

import random
from dataclasses import dataclass

from deltaproof.verify.scenario.recall import ASK, KEYS, MOST_PAIRS, START, UNKNOWN, UNTOLD, VALUES

GROUPS = ((8, 0.35), (16, 0.35), (0, 0.3))
"""Pairs of a shared prefix, and how many of the requests begin with it."""
ASKED = 6
CHUNK = 16
"""Tokens of one part of a prefill, and what a kept state's position is a multiple of."""
DRAFTED = 2
"""Drafted tokens of a speculative step, at most."""


@dataclass(frozen=True)
class Job:
    """A request as its user sends it.

    Attributes:
        name: for reports.
        script: the tokens it will have, prompt first; None where the model has to say one.
        answers: what it should say there.
        arrives: the engine's step from which it waits.
        gives_up: parts of the prefill after which its user goes away, or fewer where it ends before; None for one
            that stays.
    """

    name: str
    script: tuple[int | None, ...]
    answers: tuple[int, ...]
    arrives: int
    gives_up: int | None = None

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the first answer."""
        return tuple(token for token in self.script[: self.script.index(None)] if token is not None)


def workload(count: int, seed: int) -> list[Job]:
    """Draw ``count`` requests that stay, with some that do not between them."""
    draw = random.Random(seed)
    prefixes = [_pairs(draw, [], size) for size, _ in GROUPS]
    jobs: list[Job] = []
    arrives, stay = 0, 0
    while stay < count:
        prefix = draw.choices(prefixes, [weight for _, weight in GROUPS])[0]
        pairs = prefix + _pairs(draw, prefix, draw.randint(max(4, 12 - len(prefix)), MOST_PAIRS - len(prefix)))
        gives_up = draw.randint(1, 2) if draw.random() < 0.2 else None
        jobs.append(_job(f"request {len(jobs)}", pairs, draw, arrives, gives_up))
        stay += gives_up is None
        # bursts and pauses, so that the batch takes every size
        arrives += draw.choice((0, 0, 1, 2, 4, 8))
    return jobs


def _pairs(draw: random.Random, before: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    free = sorted(set(range(KEYS)) - {key for key, _ in before})
    return [(key, KEYS + draw.randrange(VALUES)) for key in draw.sample(free, count)]


def _job(name: str, pairs: list[tuple[int, int]], draw: random.Random, arrives: int, gives_up: int | None) -> Job:
    known = dict(pairs)
    untold = [key for key in range(KEYS) if key not in known]
    told = draw.sample(sorted(known), ASKED)
    asked = [draw.choice(untold) if draw.random() < UNTOLD else key for key in told]
    script: list[int | None] = [START, *(token for pair in pairs for token in pair), ASK]
    for key in asked:
        script += [key, None]
    return Job(name, tuple(script), tuple(known.get(key, UNKNOWN) for key in asked), arrives, gives_up)


def draft(job: Job, position: int, most: int) -> tuple[int, ...]:
    """Return 0 to ``most`` tokens that a drafter proposes for the places from ``position`` on; some are wrong."""
    draw = random.Random(f"{job.name} {len(job.script)} {position}")
    if draw.random() < 0.4:
        return ()
    said = [place for place, token in enumerate(job.script) if token is None]
    tokens = []
    for place in range(position, min(position + most, len(job.script))):
        token = job.script[place]
        if token is None:
            right = draw.random() < 0.6
            token = job.answers[said.index(place)] if right else KEYS + draw.randrange(VALUES)
        tokens.append(token)
    return tuple(tokens)
