"""Steps through the pool on a GPU: captured once a padded size, replayed for whoever comes, waiting for nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deltaproof import causal_conv1d_update, gated_delta_rule_decode
from deltaproof.contracts.conventions import StateLayout
from deltaproof.state import ConvDraftField, ConvField, DraftField, Lease, RecurrentField, StatePool, StepPlan
from deltaproof.verify.probes._cuda import Cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]

LAYERS, SIZES, T, CAPACITY = 2, (1, 2, 4, 8), 3, 11
H, HV, K, V, CHANNELS, WIDTH = 2, 4, 128, 64, 96, 4
LOW = torch.bfloat16
STATE = RecurrentField("state", heads=HV, K=K, V=V, layout=StateLayout.V_FIRST)
WINDOW = ConvField("window", channels=CHANNELS, width=WIDTH, dtype=LOW)
DRAFTS = DraftField("drafts", tokens=T, heads=H, value_heads=HV, K=K, V=V, dtype=LOW)
INPUTS = ConvDraftField("inputs", tokens=T, channels=CHANNELS, dtype=LOW)
SHAPES = {"q": (H, K), "k": (H, K), "v": (HV, V), "g": (HV,), "beta": (HV,), "x": (CHANNELS,)}
DTYPES = {"g": torch.float32, "beta": torch.float32}

Tokens = dict[str, torch.Tensor]


def pool_of(capacity: int) -> StatePool:
    return StatePool([STATE, WINDOW, DRAFTS, INPUTS], layers=LAYERS, capacity=capacity, device="cuda", debug=["poison"])


def drawn(seed: int, count: int = T) -> Tokens:
    """Return a request's tokens [1, count, ...] of one step."""
    draw = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(1, count, *shape, generator=draw) for name, shape in SHAPES.items()}
    found["g"], found["beta"] = -found["g"].abs(), found["beta"].sigmoid()
    return {name: x.to("cuda", DTYPES.get(name, LOW)) for name, x in found.items()}


class Steps:
    """Static inputs and outputs of each padded size, and the kernels of a step on them."""

    def __init__(self, pool: StatePool, tokens: int, *, drafted: bool) -> None:
        self.pool, self.drafted = pool, drafted
        self.weight = torch.linspace(-1, 1, CHANNELS * WIDTH, device="cuda").view(CHANNELS, WIDTH).to(LOW)
        self.rate, self.bias = (torch.linspace(0, 1, HV, device="cuda") for _ in range(2))
        self.inputs: dict[int, Tokens] = {}
        self.outputs: dict[int, list[torch.Tensor]] = {}
        for size in SIZES:
            rows = (size, tokens)
            made = {
                name: torch.zeros(*rows, *shape, device="cuda", dtype=DTYPES.get(name, LOW))
                for name, shape in SHAPES.items()
            }
            self.inputs[size] = made
            self.outputs[size] = [torch.zeros_like(made[name]) for _ in range(LAYERS) for name in ("v", "x")]

    def run(self, size: int, arguments: dict[str, Any]) -> None:
        given = dict(self.inputs[size])
        x = given.pop("x")
        for layer in range(LAYERS):
            o, y = self.outputs[size][2 * layer : 2 * layer + 2]
            kept, lines = {}, {}
            if self.drafted:
                kept = {"drafts": self.pool.bind_drafts(DRAFTS, layer)}
                lines = {"drafts": self.pool.bind(INPUTS, layer)}
            causal_conv1d_update(
                x, self.weight, pool=self.pool.bind(WINDOW, layer), activation="silu", out=y, **lines, **arguments
            )
            gated_delta_rule_decode(
                **given, pool=self.pool.bind(STATE, layer), state_layout="v_first", use_qk_l2norm_in_kernel=True,
                use_gate_in_kernel=True, A_log=self.rate, dt_bias=self.bias, out=o, **kept, **arguments,
            )  # fmt: skip

    def load(self, size: int, tokens: list[Tokens]) -> None:
        """Copy the rows' tokens in; what padding rows hold stays, as in a serving engine's static buffer."""
        for row, own in enumerate(tokens):
            for name, x in own.items():
                self.inputs[size][name][row].copy_(x[0])

    def capture(self, size: int, arguments: dict[str, Any]) -> Callable[[], None]:
        self.run(size, arguments)  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run(size, arguments)
        return graph.replay


def graphs(plan: StepPlan, steps: Steps) -> dict[int, Callable[[], None]]:
    """Capture a step of every size, with padding rows alone."""
    found = {}
    for size in SIZES:
        nobody: list[Lease | None] = [None] * size
        if steps.drafted:
            found[size] = steps.capture(size, plan.speculate(nobody, [0] * size))
            plan.commit([0] * size)
        else:
            found[size] = steps.capture(size, plan.decode(nobody))
    return found


def padded(rows: int) -> int:
    return next(size for size in SIZES if size >= rows)


class Alone:
    """A request in a pool of its own, stepped without graphs."""

    def __init__(self, tokens: int, *, drafted: bool) -> None:
        self.pool = pool_of(1)
        self.plan = StepPlan(self.pool, sizes=[1])
        self.steps = Steps(self.pool, tokens, drafted=drafted)
        self.lease = self.pool.acquire()

    def step(self, tokens: Tokens, count: int, accepted: int) -> list[torch.Tensor]:
        self.steps.load(1, [tokens])
        if self.steps.drafted:
            self.steps.run(1, self.plan.speculate([self.lease], [count]))
            self.plan.commit([accepted])
        else:
            self.steps.run(1, self.plan.decode([self.lease], [count]))
        return [x.clone() for x in self.steps.outputs[1]]


@pytest.mark.parametrize("drafted", [False, True], ids=["decode", "speculate"])
def test_graphs_at_padded_sizes_give_each_request_the_bits_that_it_has_alone(drafted: bool) -> None:
    seed = 7
    draw = random.Random(seed)
    pool = pool_of(CAPACITY)
    plan, steps = StepPlan(pool, sizes=SIZES), Steps(pool, T, drafted=drafted)
    replay = graphs(plan, steps)
    active: list[tuple[Lease, Alone]] = []
    for number in range(40):
        for lease, _ in active[8 - draw.randrange(8) :]:
            lease.release()
        active = [each for each in active if each[0].state.name != "RELEASED"]
        while len(active) < draw.randrange(1, 9):
            active.append((pool.acquire(f"request {number}"), Alone(T, drafted=drafted)))
        draw.shuffle(active)
        counts = [draw.randrange(T + 1) for _ in active]
        accepted = [draw.randrange(count + 1) for count in counts]
        tokens = [drawn(1000 * number + row) for row in range(len(active))]
        size, leases = padded(len(active)), [lease for lease, _ in active]
        steps.load(size, tokens)
        if drafted:
            plan.speculate(leases, counts)
        else:
            plan.decode(leases, counts)
        replay[size]()
        if drafted:
            plan.commit(torch.tensor(accepted + [0] * (size - len(active)), dtype=torch.int32, device="cuda"))
        for row, (_, alone) in enumerate(active):
            wanted = alone.step(tokens[row], counts[row], accepted[row])
            for at, (ours, theirs) in enumerate(zip(steps.outputs[size], wanted, strict=True)):
                same = torch.equal(ours[row, : counts[row]], theirs[0, : counts[row]])
                assert same, f"seed {seed}, step {number}, row {row} of {size}, output {at}: other bits than alone"
        assert all(not x[len(active) :].any() for x in steps.outputs[size]), f"seed {seed}, step {number}: padding"
    torch.cuda.synchronize()
    assert pool.disturbed() == []


@pytest.mark.parametrize("captured", [False, True], ids=["launched", "replayed"])
def test_steady_decode_waits_for_nothing_and_takes_no_memory(captured: bool) -> None:
    pool = pool_of(CAPACITY)
    plan, steps = StepPlan(pool, sizes=SIZES), Steps(pool, 1, drafted=False)
    replay = graphs(plan, steps)
    leases = [pool.acquire() for _ in range(8)]
    for rows in range(1, 9):  # every size once: from here on it is steady
        steps.run(padded(rows), plan.decode(leases[:rows]))
    torch.cuda.synchronize()
    taken = torch.cuda.memory_stats()["allocation.all.allocated"]
    with Cuda().no_sync():
        for number in range(50):
            rows = number % 8 + 1
            arguments = plan.decode(leases[:rows])
            if captured:
                replay[padded(rows)]()
            else:
                steps.run(padded(rows), arguments)
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == taken


def test_a_steady_step_is_one_copy_and_one_kernel_a_layer_and_operator() -> None:
    from torch.profiler import ProfilerActivity, profile

    pool = pool_of(CAPACITY)
    plan, steps = StepPlan(pool, sizes=SIZES), Steps(pool, 1, drafted=False)
    leases = [pool.acquire() for _ in range(3)]
    for _ in range(2):
        steps.run(4, plan.decode(leases))
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        steps.run(4, plan.decode(leases))
        torch.cuda.synchronize()
    on_device = [event.name for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    copies = [name for name in on_device if "memcpy" in name.lower()]
    kernels = [name for name in on_device if name not in copies]
    assert len(copies) == 1, on_device
    assert len(kernels) == 2 * LAYERS, on_device
