"""A recurrent kernel with a gate for every key channel, as it was after the fix."""

import torch
import triton
import triton.language as tl


@triton.jit
def recurrence_kernel(q, k, v, g, o, T, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k_at = tl.arange(0, BK)
    k_in = k_at < K
    state = tl.zeros([BK], tl.float32)
    for t in range(T):
        token = (row // H * T + t) * H + row % H
        b_q = tl.load(q + token * K + k_at, mask=k_in, other=0.0)
        b_k = tl.load(k + token * K + k_at, mask=k_in, other=0.0)
        b_g = tl.load(g + token * K + k_at, mask=k_in, other=0.0)
        b_v = tl.load(v + token * V)
        state = state * tl.exp(b_g) + b_k * b_v
        tl.store(o + token * V, tl.sum(state * b_q, 0))


def recurrence(q, k, v, g):
    """Return o [B, T, H, 1] for q, k, g [B, T, H, K] and v [B, T, H, 1]."""
    B, T, H, K = q.shape
    o = torch.empty_like(v)
    recurrence_kernel[(B * H,)](q, k, v, g, o, T, H=H, K=K, V=1, BK=triton.next_power_of_2(K))
    return o
