"""Handing on what a run knows so far, so that one which is killed has kept it."""

from __future__ import annotations

import time
from collections.abc import Callable

KEEP_SECONDS = 20.0
"""A report so far is handed on at most this often."""


class Keeper:
    """Hands on what is so far known: at once, then at most every KEEP_SECONDS, and only where there is news."""

    def __init__(self, keep: Callable[[], None]) -> None:
        self.keep = keep
        self.due = time.monotonic()
        self.news = False

    def wait(self) -> float | None:
        """Hand on what is due; return after how many seconds to look again, None where nothing is waiting."""
        if self.news and time.monotonic() >= self.due:
            self.keep()
            self.news, self.due = False, time.monotonic() + KEEP_SECONDS
        return max(0.0, self.due - time.monotonic()) if self.news else None
