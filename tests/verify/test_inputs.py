"""Inputs: the same case and seed give the same values in new memory, surrounded by red zones."""

import pytest
import torch

from deltaproof.verify.case import Case
from deltaproof.verify.inputs import RED_ZONE, build, whole_memory

TENSORS = ("q", "k", "v", "g", "beta", "initial_state", "cu_seqlens", "A_log", "dt_bias", "read_index", "pool")


def tensors(call):
    found = {name: getattr(call, name, None) for name in TENSORS}
    return {name: x for name, x in found.items() if x is not None}


CASES = [
    Case("chunk", gate_in_kernel=True),
    Case("recurrent", seqlens=(3, 0, 5), tail=2),
    Case("decode", T=2, slot_padding=8, head_padding=4),
    Case("prefill", T=5, write=(3, -1)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
class TestEveryCase:
    def test_is_drawn_again_with_the_same_values_in_new_memory(self, case):
        first, second = tensors(build(case, 0)), tensors(build(case, 0))
        for name, x in first.items():
            assert torch.equal(x.nan_to_num(nan=7.0), second[name].nan_to_num(nan=7.0)), name
            assert x.untyped_storage().data_ptr() != second[name].untyped_storage().data_ptr(), name

    def test_is_drawn_otherwise_from_another_seed(self, case):
        first, second = tensors(build(case, 0)), tensors(build(case, 1))
        assert not torch.equal(first["q"].nan_to_num(), second["q"].nan_to_num())

    @pytest.mark.parametrize(("fill", "value"), [("nan", float("nan")), ("stale", 1.5)])
    def test_lies_between_red_zones(self, case, fill, value):
        q = build(case, 0, fill=fill).q
        memory = whole_memory(q).view(q.dtype)
        zones = torch.cat([memory[:RED_ZONE], memory[-RED_ZONE:]])
        assert memory.numel() == q.numel() + 2 * RED_ZONE
        assert torch.equal(zones, torch.full_like(zones, value)) or bool(zones.isnan().all())


def test_cases_differ_in_their_seed():
    assert len({case.seed(0) for case in CASES}) == len(CASES)
    assert CASES[0].seed(0) != CASES[0].seed(1)


def test_a_pool_has_a_guard_slot_at_either_end_and_gaps():
    call = build(Case("decode", T=1, K=8, V=4, HV=2, H=1, slot_padding=12, head_padding=4), 0, fill="stale")
    pool = call.pool
    assert pool.stride(1) == 36
    assert pool.stride(0) == 84
    assert pool.storage_offset() >= pool.stride(0)
    memory = whole_memory(pool).view(pool.dtype)
    assert memory.numel() - pool.storage_offset() >= pool.stride(0) * (pool.shape[0] + 1)
    outside = torch.ones_like(memory, dtype=torch.bool)
    outside.as_strided(pool.shape, pool.stride(), pool.storage_offset()).fill_(False)
    assert bool((memory[outside] == 1.5).all())


def test_keys_that_are_not_normalised_keep_to_the_range_of_the_contract():
    k = build(Case("chunk", normalize=False, T=200), 0).k
    assert float(k.norm(dim=-1).max()) < 1.0


def test_gate_parameters_have_a_dtype_of_their_own():
    call = build(Case("chunk", gate_in_kernel=True, gate_dtype="float16", parameter_dtype="bfloat16"), 0)
    assert call.A_log.dtype == call.dt_bias.dtype == torch.bfloat16
    assert call.g.dtype == torch.float16


def test_a_gate_a_channel_has_parameters_of_its_shape_and_keeps_its_promise():
    case = Case("chunk", gates="extreme", T=100, safe_gate=True)
    g = build(case, 0, gate_per_channel=True).g
    assert g.shape == (2, 100, 4, 24) and float(g.min()) == -5 and bool((g <= 0).all())
    inside = build(Case("chunk", gate_in_kernel=True, lower_bound=-5.0, A_log=False), 0, gate_per_channel=True)
    assert inside.A_log is None and inside.dt_bias.shape == (4, 24) and inside.options.lower_bound == -5


@pytest.mark.parametrize("gates", ["ordinary", "zero", "slow", "extreme", "mixed"])
def test_log_gates_are_never_positive(gates):
    g = build(Case("chunk", gates=gates, T=100), 0).g
    assert bool((g <= 0).all())
    if gates == "mixed":
        assert float(g.min()) == -1e4
        assert bool((g == 0).any())
