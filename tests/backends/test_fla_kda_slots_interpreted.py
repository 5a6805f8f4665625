"""What the recurrent KDA kernel of the installed fla does with slots, seen in Triton's interpreter.

No adapter calls it so: fla's public function has no slot index, and engines call the inner ``fused_recurrent_kda_fwd``.
Held against fla-core 0.5.2 and 0.6.0.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("triton")

from tests.backends.fla_interpreted import fla_version, needs_fla, run

SEEN = ("0.5.2", "0.6.0")
pytestmark = [
    pytest.mark.slow,
    needs_fla,
    pytest.mark.skipif(fla_version() not in SEEN, reason=f"held against fla-core {' and '.join(SEEN)}"),
]

SCRIPT = """
import json

import torch
from fla.ops.kda.fused_recurrent import fused_recurrent_kda, fused_recurrent_kda_fwd

torch.manual_seed(0)
NAN = float("nan")
K = V = 16
facts = {}


def tokens(B, T, K=K, V=V):
    k = torch.nn.functional.normalize(torch.randn(B, T, 1, K), dim=-1)
    v, g, beta = torch.randn(B, T, 1, V), -torch.rand(B, T, 1, K), torch.rand(B, T, 1)
    return dict(q=torch.randn(B, T, 1, K), k=k, v=v, g=g, beta=beta)


def part(x, rows, start, end):
    return {name: tensor[rows, start:end] for name, tensor in x.items()}


def state_after(x, state):
    # the plain call is the measure: one sequence, no slots
    return fused_recurrent_kda(**x, initial_state=state[None], output_final_state=True)[1][0]


def which(state, known):
    return [name for name, other in known.items() if torch.allclose(state, other, atol=1e-5)]


def new_final_state(lengths):
    # out of place, with slots: whose state each row of the new memory holds, and of the memory around it
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    x, pool = tokens(1, int(bounds[-1])), torch.randn(8, 1, K, V)
    slots = torch.arange(1, 1 + len(lengths), dtype=torch.int32)[:, None].repeat(1, max(lengths))
    made, new_empty = [], torch.Tensor.new_empty

    def with_nan_around(self, *size, **options):
        if len(size) != 4:
            return new_empty(self, *size, **options)
        made.append(new_empty(self, size[0] + 8, *size[1:], **options).fill_(NAN))
        return made[-1][4:-4]

    torch.Tensor.new_empty = with_nan_around
    fused_recurrent_kda_fwd(**x, initial_state=pool, inplace_final_state=False, output_final_state=True,
                            cu_seqlens=bounds, ssm_state_indices=slots)
    torch.Tensor.new_empty = new_empty
    known = {}
    for n, (start, end) in enumerate(zip(bounds.tolist(), bounds.tolist()[1:])):
        for t in range(start, end):
            known[f"sequence {n} token {t - start}"] = state_after(part(x, slice(1), start, t + 1), pool[n + 1])
    rows = {str(i - 4): which(state, known) for i, state in enumerate(made[0]) if not state.isnan().all()}
    return {row: found[0] for row, found in rows.items()}


facts["lengths 1, 0, 1"] = new_final_state([1, 0, 1])
facts["lengths 3, 2"] = new_final_state([3, 2])

memory = torch.randn(6, 1, K, V)
before, pool = memory.clone(), memory[2:]
x = tokens(2, 1)
o, _ = fused_recurrent_kda_fwd(**x, initial_state=pool, ssm_state_indices=torch.tensor([-1, 2], dtype=torch.int32))
facts["slots -1, 2"] = [i - 2 for i in range(6) if not torch.equal(memory[i], before[i])]
facts["slot -1 went on from the row before the pool"] = torch.allclose(
    memory[1], state_after(part(x, slice(1), 0, 1), before[1]), atol=1e-5
)

before = torch.randn(8, 1, K, V)
pool, indices = before.clone(), torch.tensor([7, 1, 2, 3, 4, 5, 6], dtype=torch.int32)
x = tokens(2, 1)
fused_recurrent_kda_fwd(**x, initial_state=pool, ssm_state_indices=indices[1:].view(2, 3),
                        num_accepted_tokens=torch.zeros(2, dtype=torch.int32))
for row, written in ((0, 1), (1, 4)):
    known = {slot: state_after(part(x, slice(row, row + 1), 0, 1), before[slot]) for slot in range(8)}
    facts[f"row {row} of [[1, 2, 3], [4, 5, 6]], behind a 7, none accepted, starts from"] = which(pool[written], known)

wide = torch.tensor([[1, 7, 2, 7], [3, 7, 4, 7]], dtype=torch.int32)
pool = before.clone()
fused_recurrent_kda_fwd(**tokens(2, 2), initial_state=pool, ssm_state_indices=wide[:, ::2])
facts["every second of [[1, 7, 2, 7], [3, 7, 4, 7]]"] = [i for i in range(8) if not torch.equal(pool[i], before[i])]

for K in (16, 20):
    x = tokens(1, 3, K, 8)
    memory = torch.full((x["g"].numel() + 64,), NAN)
    memory[: x["g"].numel()] = x["g"].flatten()
    x["g"] = memory[: x["g"].numel()].view(x["g"].shape)
    o, state = fused_recurrent_kda(**x, output_final_state=True)
    facts[f"NaN behind g, K {K}"] = [[t for t in range(3) if o[0, t].isnan().any()], bool(state.isnan().any())]

print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(SCRIPT)[-1])
    return found


def test_a_new_final_state_with_slots_is_written_by_token_and_an_empty_sequence_has_none(facts):
    # three sequences were given three rows: the second holds the third's state, and nobody writes the third
    assert facts["lengths 1, 0, 1"] == {"0": "sequence 0 token 0", "1": "sequence 2 token 0"}


def test_more_tokens_than_sequences_are_written_past_a_new_final_state(facts):
    # two sequences were given rows 0 and 1
    assert facts["lengths 3, 2"] == {
        "0": "sequence 0 token 0",
        "1": "sequence 0 token 1",
        "2": "sequence 0 token 2",
        "3": "sequence 1 token 0",
        "4": "sequence 1 token 1",
    }


def test_a_negative_slot_is_read_and_written_in_front_of_the_pool(facts):
    assert facts["slots -1, 2"] == [-1, 2]
    assert facts["slot -1 went on from the row before the pool"]


def test_without_accepted_tokens_the_slot_is_read_one_place_before_the_row_s_own(facts):
    assert facts["row 0 of [[1, 2, 3], [4, 5, 6]], behind a 7, none accepted, starts from"] == [7]
    assert facts["row 1 of [[1, 2, 3], [4, 5, 6]], behind a 7, none accepted, starts from"] == [3]


def test_the_stride_between_the_slots_of_a_row_is_not_used(facts):
    # slots 1, 2, 3 and 4 were given, with 7s between them
    assert facts["every second of [[1, 7, 2, 7], [3, 7, 4, 7]]"] == [1, 3, 7]


def test_the_gate_is_read_past_its_last_channel_until_0_6_0(facts):
    assert facts["NaN behind g, K 16"] == [[], False]
    assert facts["NaN behind g, K 20"] == ([[2], True] if fla_version() == "0.5.2" else [[], False])
