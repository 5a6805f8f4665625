"""A few requests of one seed, and what each says alone."""

from __future__ import annotations

import pytest

from deltaproof.verify.scenario.runs import Tokens, alone, model

SEED, REQUESTS = 3, 16


@pytest.fixture(scope="session")
def reference() -> Tokens:
    model()
    return alone(SEED, REQUESTS)
