"""What a clause is."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import cleandoc

FORMS = ("chunk", "recurrent", "decode", "prefill")
"""Ways to compute an operator: two over whole sequences, two against a pool of states."""

SEQUENCE_FORMS = ("chunk", "recurrent")
POOL_FORMS = ("decode", "prefill")


@dataclass(frozen=True)
class Clause:
    """One numbered promise of the contract.

    Attributes:
        code: letter and number, stable across contract versions, such as ``"P1"``.
        name: short lower-case name with hyphens.
        title: the promise in one line.
        text: the whole promise, Markdown.
        forms: the forms that are held to it, out of ``FORMS``.
        example: a call or a worked case, Markdown; None where the text needs none.
    """

    code: str
    name: str
    title: str
    text: str
    forms: tuple[str, ...] = FORMS
    example: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", cleandoc(self.text))
        if self.example is not None:
            object.__setattr__(self, "example", cleandoc(self.example))
