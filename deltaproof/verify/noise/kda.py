"""The rounding model of Kimi delta attention: the chunked algorithm, of which chunks of one token are the recurrence.

Between sub-chunks of 16 rows a decay is two factors, split at the first row of the later sub-chunk, each rounded into a
matmul's operand; inside a sub-chunk it is one factor a pair of rows and channel.

Shape legend: P draws, N sequences padded to T tokens, HV heads, C chunk size, K, V head sizes, B rows of a sub-chunk.
"""

from __future__ import annotations

import torch

from deltaproof.ops.common.calls import DeltaRuleCall, SequenceCall
from deltaproof.ops.common.torch_inputs import MIN_LOG_GATE
from deltaproof.ops.kda.gate import log_gate
from deltaproof.verify.noise import Rounding, rounded_operands

SUB_CHUNK = 16


def operands(call: DeltaRuleCall, rounding: Rounding) -> tuple[torch.Tensor, ...]:
    """Return q, k (HV heads), v, log g, beta of a float64 call, rounded where a kernel rounds."""
    return rounded_operands(call, rounding, log_gate)


def _faded_products(x: torch.Tensor, k: torch.Tensor, G: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """Return sum_c x_ic k_jc exp(G_ic - G_jc) [N, HV, C, C] for j <= i; x, k, G are [N, HV, C, K]."""
    op, fp32, back, product = rounding.op, rounding.fp32, rounding.back, rounding.product
    C, K = x.shape[2:]
    rows = []
    for start in range(0, C, SUB_CHUNK):
        own = slice(start, min(start + SUB_CHUNK, C))
        B = own.stop - own.start
        lower = torch.ones(B, B, dtype=torch.bool).tril()[..., None]
        # a gate's gradient is a sum over these, each rounded, as its partial sums are
        decay = (back(G[:, :, own])[:, :, :, None] - back(G[:, :, own])[:, :, None]).masked_fill(~lower, -torch.inf)
        decay = rounding.at(decay.exp(), rounding.single * max(1.0, C**0.5 / 4))
        left, right = op(x[:, :, own]), op(k[:, :, own])
        exact = torch.einsum("nhic,nhjc,nhijc->nhij", left, right, decay)
        with torch.no_grad():
            terms = torch.einsum("nhic,nhjc,nhijc->nhij", left**2, right**2, decay**2).sqrt()
            error = rounding.single * max(1.0, K**0.5 / 4) * terms * rounding.noise.like(terms)
        parts = [fp32(exact) + error, x.new_zeros(*x.shape[:2], B, C - own.stop)]
        if start:
            at = back(G)[:, :, start : start + 1]
            after = op(x[:, :, own] * fp32((back(G)[:, :, own] - at).exp()))
            before = op(k[:, :, :start] * fp32((at - back(G)[:, :, :start]).exp()))
            parts = [product(after, before.mT), *parts]
        rows.append(torch.cat(parts, -1))
    return torch.cat(rows, -2)


def run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    *,
    scale: float,
    chunk: int,
    rounding: Rounding,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run q, k, g [N, T, HV, K], v [N, T, HV, V], beta [N, T, HV] from state [N, HV, K, V].

    Returns o [N, T, HV, V] and the states before the first chunk and after each.
    """
    op, fp32, back, product = rounding.op, rounding.fp32, rounding.back, rounding.product
    states, outputs = [state], []
    for start in range(0, q.shape[1], chunk):
        qc, kc, vc, gc, bc = (x[:, start : start + chunk].transpose(1, 2) for x in (q, k, v, g, beta))
        C = qc.shape[2]
        S = states[-1]
        G = rounding.running(gc.clamp(min=MIN_LOG_GATE).cumsum(-2), C)  # [N, HV, C, K]; its error grows with |G|
        grown, b, end = fp32(G.exp()), bc[..., None], G[:, :, -1:]
        if C == 1:
            # as a recurrence does: the state fades, and is read by the key and the query as they are
            faded = fp32(grown.mT * S)
            error = op(fp32(rounding.shared(b, vc.shape[-1]) * fp32(vc - product(op(kc), op(faded)))))
            states.append(fp32(faded + product(op(kc).mT, error)))
            outputs.append(scale * product(op(qc), op(states[-1])).transpose(1, 2))
            continue
        read = op(S)
        x = rounding.shared(b, vc.shape[-1]) * (vc - product(op(kc * grown), read))
        system = fp32(_faded_products(kc, kc, G, rounding) * b).tril(-1) + torch.eye(C, dtype=q.dtype)
        inverse = torch.linalg.solve_triangular(system, torch.eye(C, dtype=q.dtype), upper=False, unitriangular=True)
        new = op(fp32(product(op(inverse), op(x))))  # [N, HV, C, V]
        attention = op(fp32(_faded_products(qc, kc, G, rounding)))
        outputs.append(scale * (product(op(qc * grown), read) + product(attention, new)).transpose(1, 2))
        kept = op(kc * fp32((back(end) - back(G)).exp()))
        states.append(fp32(fp32(end.exp().mT) * S) + product(kept.mT, new))
    return (torch.cat(outputs, 1) if outputs else torch.zeros_like(v)), states


def same_dtype(call: SequenceCall, *, chunked: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return o and the final state as an ordinary good kernel computes them: fp32, operands rounded to q's dtype.

    The chunked algorithm with finished operands rounded, one sequence after another; with ``chunked=False`` the
    recurrence in fp32.
    """
    from deltaproof.ops.common.torch_inputs import k_first, normalize, repeat_heads
    from deltaproof.ops.kda.oracle import spans

    B, T, _, HV, K, V = call.dims
    low = (
        torch.promote_types(torch.promote_types(call.q.dtype, call.k.dtype), call.v.dtype) if chunked else torch.float32
    )
    size = call.options.chunk_size if chunked else 1

    def r(x: torch.Tensor) -> torch.Tensor:
        return x.to(low).float()

    q, k = (repeat_heads(x.float(), HV) for x in (call.q, call.k))
    if call.options.normalize_qk:
        q, k = r(normalize(q)), r(normalize(k))
    beta = call.beta.float()
    if call.options.beta_sigmoid:
        beta = beta.sigmoid() * (2 if call.options.neg_eigval else 1)
    g = log_gate(call, torch.float32).clamp(min=MIN_LOG_GATE)

    def products(x: torch.Tensor, y: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
        C = x.shape[1]
        lower = torch.ones(C, C, dtype=torch.bool).tril()
        D = (G[:, :, None] - G[:, None]).masked_fill(~lower[..., None], -torch.inf).exp()  # [HV, C, C, K]
        return torch.einsum("hic,hijc->hij", x, r(y[:, None] * D))

    o = torch.zeros(B, T, HV, V)
    finals = []
    for n, (b, span) in enumerate(spans(call)):
        S = torch.zeros(HV, K, V)
        if call.initial_state is not None:
            S = k_first(call.initial_state, call.options.layout)[n].float()
        for start in range(span.start, span.stop, size):
            piece = slice(start, min(start + size, span.stop))
            qc, kc, vc, gc, bc = (x[b, piece].transpose(0, 1) for x in (q, k, call.v.float(), g, beta))  # [HV, C, ...]
            C = qc.shape[1]
            G = gc.cumsum(-2)  # [HV, C, K]
            A = (products(kc, kc, G) * bc[..., None]).tril(-1) + torch.eye(C)
            inverse = r(torch.linalg.solve_triangular(A, torch.eye(C), upper=False, unitriangular=True))
            new = r(inverse @ r(bc[..., None] * (vc - r(kc * G.exp()) @ r(S))))
            answer = r(qc * G.exp()) @ r(S) + r(products(qc, kc, G)) @ new
            o[b, piece] = (call.options.scale * answer).transpose(0, 1)
            end = G[:, -1:]
            S = end.exp().mT * S + r(kc * (end - G).exp()).mT @ new
        finals.append(S)
    final = torch.stack(finals) if finals else torch.zeros(0, HV, K, V)
    return o, k_first(final, call.options.layout)
