"""The rounding model of the gated delta rule: the chunked algorithm, of which chunks of one token are the recurrence.

Shape legend: P draws, N sequences padded to T tokens, HV heads, C chunk size, K, V head sizes.
"""

from __future__ import annotations

import torch

from deltaproof.ops.common.calls import DeltaRuleCall, SequenceCall
from deltaproof.ops.common.torch_inputs import MIN_LOG_GATE
from deltaproof.ops.gated_delta_rule.gate import log_gate
from deltaproof.verify.noise import Rounding, rounded_operands


def operands(call: DeltaRuleCall, rounding: Rounding) -> tuple[torch.Tensor, ...]:
    """Return q, k (HV heads), v, log g, beta of a float64 call, rounded where a kernel rounds."""
    return rounded_operands(call, rounding, log_gate)


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
    """Run q, k [N, T, HV, K], v [N, T, HV, V], g, beta [N, T, HV] from state [N, HV, K, V].

    Returns o [N, T, HV, V] and the states before the first chunk and after each.
    """
    op, fp32, back, product = rounding.op, rounding.fp32, rounding.back, rounding.product
    states, outputs = [state], []
    for start in range(0, q.shape[1], chunk):
        qc, kc, vc, gc, bc = (x[:, start : start + chunk].transpose(1, 2) for x in (q, k, v, g, beta))
        C = qc.shape[2]
        S = states[-1]
        G = rounding.running(gc.clamp(min=MIN_LOG_GATE).cumsum(-1), C)  # its error grows with |G|
        lower = torch.ones(C, C, dtype=torch.bool).tril()
        # in the recurrence, chunks of one token, no kernel computes decays between tokens
        rows, columns = (back(G), back(G)) if C > 1 else (G, G)
        D = (rows[..., :, None] - columns[..., None, :]).masked_fill(~lower, float("-inf")).exp()
        # a gate's gradient is a sum over these, each rounded, as its partial sums are
        D = rounding.at(D, rounding.single * max(1.0, C**0.5 / 4)) if C > 1 else D
        b, end = bc[..., None], G[..., -1:]
        read = op(S)
        x = rounding.shared(b, vc.shape[-1]) * (vc - fp32(G.exp()[..., None]) * product(op(kc), read))
        if C > 1:
            system = fp32(product(op(kc), op(kc).mT) * D * b).tril(-1) + torch.eye(C, dtype=q.dtype)
            inverse = torch.linalg.solve_triangular(
                system, torch.eye(C, dtype=q.dtype), upper=False, unitriangular=True
            )
            x = product(op(inverse), op(x))
        new = op(fp32(x))  # [N, HV, C, V]
        attention = op(fp32(product(op(qc), op(kc).mT) * D))
        o = fp32(G.exp()[..., None]) * product(op(qc), read) + product(attention, new)
        outputs.append(scale * o.transpose(1, 2))
        later, earlier = (back(end), back(G)) if C > 1 else (end, G)
        kept = op(kc * fp32((later - earlier).exp())[..., None])
        states.append(fp32(fp32(end.exp()[..., None]) * S) + product(kept.mT, new))
    return (torch.cat(outputs, 1) if outputs else torch.zeros_like(v)), states


def same_dtype(call: SequenceCall, *, chunked: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return o and the final state as an ordinary good kernel computes them: fp32, operands rounded to q's dtype.

    The chunked algorithm with finished operands rounded (k exp(G), the inverse, the state read, new values), one
    sequence after another; with ``chunked=False`` the recurrence in fp32.
    """
    from deltaproof.ops.common.torch_inputs import k_first, normalize, repeat_heads
    from deltaproof.ops.gated_delta_rule.oracle import spans

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
            G = gc.cumsum(-1)
            D = (
                (G[:, :, None] - G[:, None, :])
                .masked_fill(~torch.ones(C, C, dtype=torch.bool).tril(), -torch.inf)
                .exp()
            )
            A = ((kc @ kc.mT) * D * bc[..., None]).tril(-1) + torch.eye(C)
            inverse = r(torch.linalg.solve_triangular(A, torch.eye(C), upper=False, unitriangular=True))
            x = r(bc[..., None] * (vc - G.exp()[..., None] * (kc @ r(S))))
            new = r(inverse @ x)
            o[b, piece] = (
                call.options.scale * (G.exp()[..., None] * (qc @ r(S)) + r((qc @ kc.mT) * D) @ new)
            ).transpose(0, 1)
            end = G[:, -1:]
            S = end.exp()[..., None] * S + r(kc * (end - G).exp()[..., None]).mT @ new
        finals.append(S)
    final = torch.stack(finals) if finals else torch.zeros(0, HV, K, V)
    return o, k_first(final, call.options.layout)
