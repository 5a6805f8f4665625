"""The oracle against PyTorch's own convolution, and a window against its own inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deltaproof.ops.causal_conv1d import oracle
from deltaproof.ops.causal_conv1d.calls import ConvOptions, ConvPrefillCall


@pytest.mark.parametrize("W", [2, 4, 7])
@pytest.mark.parametrize("silu", [False, True])
def test_it_is_a_padded_depthwise_convolution(W: int, silu: bool) -> None:
    torch.manual_seed(W)
    C, T = 5, 11
    x, weight, bias = torch.randn(2, T, C).double(), torch.randn(C, W).double(), torch.randn(C).double()
    pool = torch.zeros(2, C, W - 1, dtype=torch.float64)
    call = ConvPrefillCall(
        x=x, weight=weight, bias=bias, options=ConvOptions(silu), pool=pool, read_index=torch.tensor([0, 1])
    )
    want = F.conv1d(F.pad(x.mT, (W - 1, 0)), weight[:, None], bias, groups=C).mT
    want = F.silu(want) if silu else want
    found = oracle.run(call)
    torch.testing.assert_close(found.y, want, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.writes[1], x[1, -(W - 1) :].mT)


def test_a_window_is_the_inputs_before() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 9, 3), torch.randn(3, 4)
    pool = torch.zeros(1, 3, 3)
    index = torch.tensor([0])
    whole = oracle.run(ConvPrefillCall(x=x, weight=weight, pool=pool, read_index=index))
    first = oracle.run(ConvPrefillCall(x=x[:, :2], weight=weight, pool=pool, read_index=index))
    second = oracle.run(ConvPrefillCall(x=x[:, 2:], weight=weight, pool=first.writes[0][None], read_index=index))
    assert torch.equal(torch.cat([first.y, second.y], 1), whole.y)
    assert torch.equal(second.writes[0], whole.writes[0])
