"""Speculative steps on Hopper: which calls the kernel takes, and on a GPU what it makes of them.

On a GPU the probe ``drafts`` holds it to the contract; here are the promises that need a look at two steps.
"""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Gluon is not interpreted", allow_module_level=True)

from deltaproof.contracts.conventions import StateLayout  # noqa: E402
from deltaproof.ops.common import hopper_decode, triton_recurrent  # noqa: E402
from deltaproof.ops.common.calls import DecodeCall, DeltaRuleOptions, Drafts  # noqa: E402

if hopper_decode.hopper_speculation_kernel is None:
    pytest.skip("the installed Triton has no matmuls in Gluon", allow_module_level=True)

N, H, HV, SLOTS = 3, 2, 4, 5


def call_of(
    T=2, D=4, K=128, V=32, dtype=torch.bfloat16, state=torch.float32, v_first=True, gap=0, drafted=True, seed=0,
    device="cpu",
) -> DecodeCall:  # fmt: skip
    """Return a step: every slot replays what ``accepted`` says from half 0."""
    torch.manual_seed(seed)
    draw = {"device": device}
    layout = StateLayout.V_FIRST if v_first else StateLayout.K_FIRST
    inner = layout.inner_shape(K, V)
    whole = 0.1 * torch.randn(SLOTS, HV, inner[0] * inner[1] + gap, **draw)
    pool = whole.to(state)[..., : inner[0] * inner[1]].unflatten(-1, inner)
    drafts = Drafts(
        torch.randn(SLOTS, 2, D, H, K, **draw).to(dtype),
        torch.randn(SLOTS, 2, D, HV, V, **draw).to(dtype),
        -torch.rand(SLOTS, 2, D, HV, **draw),
        torch.rand(SLOTS, 2, D, HV, **draw).to(dtype),
    )
    index = torch.tensor([2, 0, 4], dtype=torch.int32, device=device)
    steps = {"drafts": drafts, "draft_half": torch.zeros_like(index), "accepted": index.new_tensor([1, 0, D, 2, 3])}
    return DecodeCall(
        torch.randn(N, T, H, K, **draw).to(dtype),
        torch.randn(N, T, H, K, **draw).to(dtype),
        torch.randn(N, T, HV, V, **draw).to(dtype),
        -torch.rand(N, T, HV, **draw),
        torch.rand(N, T, HV, **draw).to(dtype),
        DeltaRuleOptions(K**-0.5, True, False, False, False, layout, 64),
        pool=pool,
        read_index=index,
        **(steps if drafted else {}),
    )


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(hopper_decode, "is_hopper", lambda device: True)


TAKEN = [{}, {"K": 64}, {"V": 16}, {"D": 8, "T": 8}, {"D": 1, "T": 1}, {"state": torch.bfloat16}, {"gap": 16}]
LEFT = [
    {"drafted": False},
    {"dtype": torch.float16},
    {"dtype": torch.float32},
    {"K": 32},
    {"K": 96},
    {"K": 256},
    {"V": 40},
    {"D": 9},
    {"v_first": False},
    {"gap": 4},
]


@pytest.mark.parametrize("given", TAKEN, ids=str)
def test_on_hopper_it_takes_what_serving_runs(hopper, given):
    assert hopper_decode.takes(call_of(**given)), given


@pytest.mark.parametrize("given", LEFT, ids=str)
def test_what_it_is_not_for_is_left_to_the_triton_kernel(hopper, given):
    assert not hopper_decode.takes(call_of(**given)), given


def test_memory_that_cannot_be_copied_in_pieces_of_16_bytes_is_left(hopper):
    call = call_of()
    shifted = torch.empty(call.pool.numel() + 1)[1:].view_as(call.pool)
    assert not hopper_decode.takes(call.with_(pool=shifted))
    room = torch.empty(SLOTS, call.drafts.k[0].numel() + 8, dtype=torch.bfloat16)
    odd = room[:, :-8].unflatten(1, call.drafts.k.shape[1:])
    assert not hopper_decode.takes(call.with_(drafts=call.drafts._replace(k=odd)))


def test_without_a_gpu_it_takes_nothing():
    assert not hopper_decode.takes(call_of())
    assert not hopper_decode.is_hopper(torch.device("cpu"))


def test_a_gpu_is_asked_once_for_what_it_is(monkeypatch):
    asked = []
    monkeypatch.setattr(hopper_decode, "_capability", {})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or (8, 0))
    device = torch.device("cuda", 3)
    assert not hopper_decode.is_hopper(device)
    assert not hopper_decode.is_hopper(device)
    assert asked == [device]


def stepped(call: DecodeCall, kernel) -> tuple[torch.Tensor, torch.Tensor, Drafts]:
    pool = torch.empty_strided(call.pool.shape, call.pool.stride(), dtype=call.pool.dtype, device=call.pool.device)
    drafts = Drafts(*(x.clone() for x in call.drafts))
    call = call.with_(pool=pool.copy_(call.pool), drafts=drafts)
    o = torch.full(call.v.shape, float("nan"), dtype=call.v.dtype, device=call.v.device)
    kernel(call, o)
    return o, call.pool, drafts


needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
STEPS = [
    {"T": T, "D": D, "K": K, "V": V, "state": state, "seed": T + D + K}
    for T, D in ((1, 1), (2, 3), (4, 4), (3, 8), (8, 8))
    for K, V in ((64, 48), (128, 128))
    for state in (torch.float32, torch.bfloat16)
]


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("given", STEPS, ids=str)
def test_it_agrees_with_the_kernel_that_goes_token_by_token(given):
    call = call_of(**given, device="cuda")
    assert hopper_decode.takes(call)
    ours = stepped(call, hopper_decode.speculate)
    theirs = stepped(call, triton_recurrent._speculate)
    # both round a state and an output once: 2 ** -8 of bf16, and 24 bits through sums of K products
    close = {torch.bfloat16: 2**-7, torch.float32: 2e-6}
    for name, mine, other in (("o", ours[0], theirs[0]), ("pool", ours[1], theirs[1])):
        difference, size = (mine.float() - other.float()).abs().max().item(), other.float().abs().max().item()
        assert difference <= close[mine.dtype] * max(size, 1), f"{name}: {difference:.1e} of {size:.1e}, {given}"
    for name, mine, other in zip(Drafts._fields, ours[2], theirs[2], strict=True):
        assert torch.equal(mine, other), f"drafts.{name}, {given}"


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("D", [4, 8])
def test_a_token_that_is_no_number_reaches_only_its_successors_answers(D):
    call = call_of(T=D, D=D, device="cuda")
    clean = stepped(call, hopper_decode.speculate)
    for name in ("q", "k", "v", "g", "beta"):
        poisoned = getattr(call, name).clone()
        poisoned[:, 2] = float("nan")
        o, pool, _ = stepped(call.with_(**{name: poisoned}), hopper_decode.speculate)
        assert torch.equal(o[:, :2], clean[0][:, :2]), f"{name}: an answer before the token changed"
        assert torch.equal(pool, clean[1]), f"{name}: a token that was not accepted reached the state"
        # a gate is held to its least value, which is a number
        assert name == "g" or o[:, 2].isnan().all(), f"{name}: the token's own answers are numbers"


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("D", [4, 8])
def test_drafts_that_were_not_accepted_may_hold_anything(D):
    call = call_of(D=D, device="cuda")
    clean = stepped(call, hopper_decode.speculate)
    drafts = Drafts(*(x.clone() for x in call.drafts))
    for part in drafts:
        for slot, count in enumerate(call.accepted.tolist()):
            part[slot, 0, count:] = float("nan")
    o, pool, _ = stepped(call.with_(drafts=drafts), hopper_decode.speculate)
    assert torch.equal(o, clean[0])
    assert torch.equal(pool, clean[1])
