"""The least bytes and floating-point operations of a workload, and the time they need. Imports no torch.

Shape legend: T tokens, N sequences, R decode rows, H q,k heads, HV value heads, K, V head sizes, C tokens of a chunk.
Bytes count each argument and each result once; vectors of one number a head or a row are left out. Operations are
counted for the chunked algorithm at C = 64, as the operators' READMEs derive it, one multiply-add as two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from deltaproof.bench.gates import GATES, Gate
from deltaproof.bench.workload import DecodeWorkload, SequenceWorkload, Workload

CHUNK = 64
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT32 = SIZES["float32"]


@dataclass(frozen=True)
class Work:
    """What a call has to move and to compute at least.

    Attributes:
        bytes: read and written.
        flops: operations, of matrix products in the main.
    """

    bytes: int
    flops: int

    def floor_ms(self, bytes_per_s: float, flops_per_s: float) -> float:
        """Return the larger of the two times, in milliseconds."""
        return 1e3 * max(self.bytes / bytes_per_s, self.flops / flops_per_s)

    def bound_by(self, bytes_per_s: float, flops_per_s: float) -> str:
        """Return which of the two is the larger: "memory" or "matmul"."""
        return "memory" if self.bytes / bytes_per_s >= self.flops / flops_per_s else "matmul"


def _states(workload: SequenceWorkload) -> int:
    HV = workload.heads[1]
    return len(workload.lengths) * HV * workload.K * workload.V * SIZES[workload.state_dtype]


def _chunks(workload: SequenceWorkload) -> list[int]:
    """Return the tokens of every chunk; the last of a sequence may be short."""
    chunks = []
    for length in workload.lengths:
        full, rest = divmod(length, CHUNK)
        chunks += [CHUNK] * full + ([rest] if rest else [])
    return chunks


def _solve(C: int) -> float:
    """Return the operations of inverting one unit lower triangular C x C matrix, C³ / 3."""
    return C**3 / 3


@dataclass(frozen=True)
class Floors:
    """The least work of one operator's verbs.

    With a gate a channel, decays stand inside the products of queries and keys, so these are made once a value head;
    with one number a head they are made once a q,k head, and its value heads share them.
    """

    gate: Gate

    def _token(self, workload: SequenceWorkload, dtype: str) -> int:
        """Return the bytes of a token's q, k, v, g and beta."""
        numbers = {name: prod(shape) for name, shape in self.gate.token_shapes(workload).items()}
        g = SIZES[dtype] if self.gate.raw_sequences else FLOAT32
        return SIZES[dtype] * (sum(numbers.values()) - numbers["g"]) + g * numbers["g"]

    def _bias(self, workload: Workload) -> int:
        """Return the bytes of the gate's bias, where it is more than a number a head."""
        return FLOAT32 * prod(self.gate.shape(workload)) if self.gate.per_channel else 0

    def _pairs(self, workload: SequenceWorkload) -> int:
        """Return the heads that have products of queries or keys with keys of their own."""
        return workload.heads[1 if self.gate.per_channel else 0]

    def prefill(self, workload: SequenceWorkload, dtype: str) -> Work:
        """Return the work of the chunk form's forward.

        Bytes: q, k, v, g, beta and the initial state are read, o and the final state written.

        Operations a chunk and value head: K S, Q S and Kᵀ E with 2CKV each; T X and A E with C²V each, because T and A
        are triangular and half of either is zero; the inverse with C³ / 3. The pairs K Kᵀ and Q Kᵀ, with C²K each, are
        triangular too and are needed once a q,k head, or once a value head with a gate a channel. For C = 64,
        K = V = 128 and H = HV that is 8.5 MFLOP; counted in full squares it is 10.5.
        """
        HV, K, V = workload.heads[1], workload.K, workload.V
        token = self._token(workload, dtype) + SIZES[dtype] * HV * V
        pairs = self._pairs(workload) * 2 * K
        flops = sum(HV * (6 * C * K * V + 2 * C * C * V + _solve(C)) + pairs * C * C for C in _chunks(workload))
        return Work(workload.tokens * token + 2 * _states(workload) + self._bias(workload), round(flops))

    def backward(self, workload: SequenceWorkload, dtype: str) -> Work:
        """Return the work of the chunk form's backward, which keeps nothing of the forward but its inputs.

        Bytes: the forward's inputs and the gradients of o and of the final state are read, the gradients of the inputs
        written.

        Operations a chunk and value head. With the state, 2CKV each: K S and Kᵀ E are computed again; then K dS, dO Sᵀ,
        E dSᵀ, Qᵀ dO, dX Sᵀ, Kᵀ dX. With C x C triangles, C²V each: T X again, Aᵀ dO, dO Eᵀ, Tᵀ dE, dX Eᵀ; and C³ / 3
        for the inverse. For the pairs, C²K each: K Kᵀ and Q Kᵀ again, and two products for q's and k's part in Q Kᵀ and
        two for k's part in K Kᵀ, once a q,k head, whose triangles are summed over the value heads first, or once a
        value head with a gate a channel. That gate's own gradient needs no product: it is q dq - k dk, channel by
        channel. For C = 64, K = V = 128 and H = HV that is 22.6 MFLOP.
        """
        HV, K, V = workload.heads[1], workload.K, workload.V
        token = 2 * self._token(workload, dtype) + SIZES[dtype] * HV * V
        pairs = self._pairs(workload) * 6 * K
        flops = sum(HV * (16 * C * K * V + 5 * C * C * V + _solve(C)) + pairs * C * C for C in _chunks(workload))
        return Work(workload.tokens * token + 3 * _states(workload) + 2 * self._bias(workload), round(flops))

    def decode(self, workload: DecodeWorkload, dtype: str) -> Work:
        """Return the work of one token a row, or of a speculative step.

        Bytes: q, k, v, g, beta and each row's state are read, o and the state written. Operations a row and value head:
        Sᵀ k, k eᵀ and Sᵀ q with 2KV each, and KV for the gate. A speculative step reads k, v, g, beta of as many drafts
        and writes those of its tokens; a draft that is taken in has no Sᵀ q.
        """
        (H, HV), K, V, R = workload.heads, workload.K, workload.V, workload.rows
        T, D = max(workload.drafts, 1), workload.drafts
        draft = SIZES[dtype] * (H * K + HV * V + prod(self.gate.shape(workload)) + HV)
        token = draft + SIZES[dtype] * (H * K + HV * V)
        state = HV * K * V * SIZES[workload.state_dtype]
        moved = R * (T * token + 2 * D * draft + 2 * state) + self._bias(workload)
        return Work(moved, R * HV * (7 * T + 5 * D) * K * V)


FLOORS: Mapping[str, Floors] = {name: Floors(gate) for name, gate in GATES.items()}
"""By operator."""
