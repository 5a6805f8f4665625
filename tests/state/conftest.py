"""A small pool with a recurrent and a convolution field."""

from __future__ import annotations

import pytest
import torch

from deltaproof.state import ConvField, RecurrentField, StateLayout, StatePool

GDN = RecurrentField("gdn", heads=2, K=5, V=3, dtype=torch.float32, layout=StateLayout.V_FIRST)
CONV = ConvField("conv", channels=7, width=4, dtype=torch.bfloat16)


@pytest.fixture
def make():
    def pool(capacity: int = 4, layers: int = 2, **options: object) -> StatePool:
        return StatePool([GDN, CONV], layers=layers, capacity=capacity, **options)

    return pool
