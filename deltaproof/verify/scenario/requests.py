"""A request while it is served, and what is kept of a prefix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from deltaproof.verify.scenario.model import HEADS, KINDS, WINDOW, K
from deltaproof.verify.scenario.workload import Job

PAST = WINDOW - 1
ROOM = 4
"""Tokens that a request may be run past its end, by a step planned before its end was seen."""


def empty_past(tokens: int) -> torch.Tensor:
    """Return memory for keys and values of all attention layers [layers, 2, PAST + tokens, H, K]."""
    return torch.zeros(KINDS.count("attention"), 2, PAST + tokens, HEADS, K)


@dataclass
class Kept:
    """A state of a prefix, in the prefix cache.

    Attributes:
        prefix: the tokens it has seen.
        handle: the store's own: a slot, or a snapshot.
        past: the attention's keys and values of these tokens.
        used: the step that used it last.
    """

    prefix: tuple[int, ...]
    handle: Any
    past: torch.Tensor
    used: int = 0


@dataclass
class Request:
    """A request that has been admitted.

    Attributes:
        job: what its user sent.
        prompt: what is prefilled of it.
        tokens: what it consists of so far, on the device: the host sees an answer later.
        fed: tokens that its state has seen.
        parts: parts of its prefill that were planned.
        past: the attention's keys and values, right whatever happens to the states.
        said: answers, with the step that gave each; on the device.
        seen: answers that the host has seen.
        handle: the store's own.
    """

    job: Job
    prompt: tuple[int, ...]
    tokens: list[int]
    past: torch.Tensor
    fed: int = 0
    parts: int = 0
    said: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    seen: int = 0
    handle: Any = None

    @classmethod
    def of(cls, job: Job, scripted: int = 0) -> Request:
        """Return a request at its first token; the last ``scripted`` of its prompt are not prefilled but decoded."""
        prompt = job.prompt[: len(job.prompt) - scripted]
        return cls(job, prompt, list(prompt), empty_past(len(job.script) + ROOM))

    @property
    def prefilling(self) -> bool:
        """Whether part of the prompt is still to be run."""
        return self.fed < len(self.prompt)

    def restart(self, kept: Kept) -> None:
        """Go on from a kept prefix."""
        self.fed = len(kept.prefix)
        self.past[:, :, : PAST + self.fed] = kept.past

    def advance(self, next_token: int, step: int) -> None:
        """Take the model's next token behind the last one fed, or what the script has there."""
        place = len(self.tokens)
        if place >= len(self.job.script):
            return
        scripted = self.job.script[place]
        if scripted is None:
            self.said.append(next_token)
            self.steps.append(step)
        self.tokens.append(next_token if scripted is None else scripted)
