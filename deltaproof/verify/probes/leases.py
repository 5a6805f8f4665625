"""Leases: a served request gives what it gives alone, whatever shares its pool

What it does
    Walks at random through a state pool: requests are admitted, prefilled in parts, decoded by one to three tokens in
    padded batches with rows of padding among them, speculated on by up to three tokens of which some are accepted
    later, kept as snapshots, hit, forked, preempted and resumed, moved out and brought back into another slot, given up
    and released, and slots are used again as soon as they are free. Free slots and dead rows hold NaN. With our own
    backends the windows of a causal convolution live in the same slots and take every step too.

What it shows
    A slot that leaks into another request: a padding index used as an address, a state that is not cleared or is
    cleared too late, a snapshot that is written, a row that reads what another row writes, a write beside the slot, a
    rejected token that leaves a trace.

How it judges
    After every step each row's outputs and its slot must have the bits that the same request has alone, with the same
    cuts; where the backend declares that bits depend on the batch, alone means beside padding in a batch of the same
    shape. Every other byte of the pool must be as it was, and tokens of nobody give 0. Requests that end are held to
    the oracle within clause N2: within the bound of decode and that of prefill together.

What it cannot see
    What a scheduler does that does not lease its slots from the pool. How steps overlap on a GPU: it waits for each.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from deltaproof.backends.registry import load
from deltaproof.contracts.conventions import StateLayout
from deltaproof.verify.case import Case
from deltaproof.verify.observation import Observation, Unsupported
from deltaproof.verify.probe import Context, Plan, Probe
from deltaproof.verify.serving.requests import Sizes
from deltaproof.verify.serving.walk import Walk

WALK = "walk-"
FULL_STEPS = 100_000
FULL_WALKS = 10


class Leases(Probe):
    """Clauses P1 to P4 and T3, through the state pool."""

    name = "leases"
    clause = "P2"
    clauses = ("P1", "P2", "P7", "N2", "S1", "S3")
    hazards = ("aliased-slot", "appended-cache", "padding-slot-address")
    forms = ("decode",)
    timeout = 900.0

    def cases(self, plan: Plan) -> Iterator[Case]:
        base = Case(plan.form, H=1, HV=2, K=8, V=5, B=8, T=3, slots=7, drafts=3)
        if plan.interpreted:
            yield base.but(label=f"{WALK}{100 if plan.full else 20}")
            return
        steps = FULL_STEPS // FULL_WALKS if plan.full else 250
        yield base.but(label=f"{WALK}{steps}")
        yield base.but(label=f"{WALK}{steps}", layout="v_first", gate_in_kernel=True, slots=5)
        if not plan.full:
            return
        for slots in (3, 4, 12):
            yield base.but(label=f"{WALK}{steps}", slots=slots)
        yield base.but(label=f"{WALK}{steps}", state_dtype="bfloat16")
        yield base.but(label=f"{WALK}{steps}", state_dtype="float16", layout="v_first")
        yield base.but(label=f"{WALK}{steps}", dtype="bfloat16", H=2, HV=4, K=5, V=8)
        yield base.but(label=f"{WALK}{steps}", dtype="float16", layout="v_first", gate_in_kernel=True, slots=9)
        yield base.but(label=f"{WALK}{steps}", K=16, V=16, layout="v_first")

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        backend = context.target.backend
        if not callable(getattr(backend, "prefill", None)):
            raise Unsupported(f"prefill: {backend.name} has no such form")
        sizes = Sizes(
            case.H,
            case.HV,
            case.K,
            case.V,
            case.slots,
            getattr(torch, case.dtype),
            getattr(torch, case.state_dtype),
            StateLayout(case.layout),
            case.gate_in_kernel,
            0 if "drafts" in backend.unsupported else case.drafts,
        )
        walk = Walk(
            context.target,
            sizes,
            case.seed(context.seed),
            context.device,
            exact_rows="I2" not in backend.unsupported,
            # our own backends have a convolution, whose windows live in the same slots
            conv=load(backend.name, "causal_conv1d") if context.target.face else None,
        )
        yield from walk.run(int(case.label.removeprefix(WALK)))


PROBE = Leases()
