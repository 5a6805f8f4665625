"""The strategies, by the names that users of sglang know; the definitions are this scenario's own."""

from __future__ import annotations

from dataclasses import dataclass

from deltaproof.verify.scenario.engine import Rules


@dataclass(frozen=True)
class Strategy:
    """How states are kept and steps are launched.

    Attributes:
        name: its name.
        what: what it does.
        extra: a request has a second slot and goes on there when a state is kept.
        caches: prefixes are kept.
        lag: launches after which the host sees a step's answers.
    """

    name: str
    what: str
    extra: bool
    caches: bool
    lag: int

    @property
    def slots(self) -> int:
        """As many as the strategy needs: those of the requests that are served at once, and of the kept prefixes."""
        rules = self.rules(False)
        return rules.running * (1 + self.extra) + rules.most_kept * self.caches

    def rules(self, speculates: bool) -> Rules:
        """Return how the engine serves; speculation is not overlapped here."""
        return Rules(caches=self.caches, lag=0 if speculates else self.lag, speculates=speculates)


STRATEGIES = (
    Strategy("extra_buffer", "a second slot a request, no copies; host and device overlap", True, True, 1),
    Strategy("no_buffer", "one slot a request, copied to be kept; no overlap", False, True, 0),
    Strategy(
        "no_buffer, no prefix cache", "one slot a request, freed at once; host and device overlap", False, False, 1
    ),
)
