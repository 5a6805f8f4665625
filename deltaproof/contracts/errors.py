"""The one error of the public face."""

from __future__ import annotations


class ContractError(ValueError):
    """An argument breaks the contract; raised before any kernel runs (clause E1).

    Attributes:
        argument: name of the offending argument, as the caller spells it.
        expected: what the contract asks for.
        got: what came.
    """

    def __init__(self, argument: str, expected: str, got: object) -> None:
        self.argument = argument
        self.expected = expected
        self.got = got
        super().__init__(f"{argument}: expected {expected}, got {got}")
