"""What a probe is: it names cases, runs each against a backend and reports what it saw.

One file a probe in ``deltaproof/verify/probes``, holding one subclass of ``Probe`` named ``PROBE``. The module's
docstring is its documentation page.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, ClassVar

import torch

import deltaproof.verify.probes
from deltaproof.contracts.operator import Operator
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.verify import inputs
from deltaproof.verify.case import Case
from deltaproof.verify.draft_inputs import speculative
from deltaproof.verify.expected import Reference
from deltaproof.verify.observation import Observation, compare, locate, number
from deltaproof.verify.target import Outputs, Target

Call = SequenceCall | DecodeCall | PrefillCall


@dataclass(frozen=True)
class Plan:
    """What cases are wanted.

    Attributes:
        operator: the operator under test.
        form: the form to cover.
        tier: "smoke" or "full".
        device: "cpu" or "cuda".
        interpreted: whether kernels run in Triton's interpreter.
    """

    operator: Operator
    form: str
    tier: str
    device: str
    interpreted: bool = False

    @property
    def full(self) -> bool:
        """Return whether the full tier is asked for."""
        return self.tier == "full"

    @property
    def light(self) -> bool:
        """Return whether the largest cases of the smoke tier are to be of fewer tokens, heads and rows.

        Interpreted kernels are thousands of times slower than compiled ones. Chunks are then of 16 tokens, so that a
        case keeps as many borders of chunks.
        """
        return self.interpreted and not self.full


@dataclass
class Context:
    """What a probe works with: the backend, and inputs and expectations of a case.

    Inputs are drawn anew, in new memory, at every call of ``call``; expectations are computed after the backend ran
    and from inputs that it never saw, so nothing it reads or writes can reach them. ``given`` is what the user set in
    every case.
    """

    target: Target
    seed: int
    device: str
    given: tuple[str, ...] = ()

    def unchecked(self) -> Context:
        """Return a context that calls below the public functions, which would look at values in CPU tensors."""
        below = copy.copy(self)
        below.target = replace(self.target, face=False)
        return below

    @cached_property
    def reference(self) -> Reference:
        """The oracle of a delta-rule operator, and its rounding model."""
        return Reference(self.target.operator)

    def call(self, case: Case, *, fill: inputs.Fill = "nan", device: str | None = None, turn: int = 0) -> Any:
        """Return the case's call; ``turn`` draws other values for the same shapes."""
        seed, per_channel = self.seed + 7919 * turn, self.target.operator.gate_per_channel
        call = inputs.build(case, seed, device or self.device, fill=fill, gate_per_channel=per_channel)
        if isinstance(call, DecodeCall) and case.drafts:
            return speculative(call, case, seed, fill, gate_per_channel=per_channel)
        return call

    def renew(self, case: Case, call: Call, *, turn: int) -> Any:
        """Return ``call`` with the values of another turn written into its memory, as a server reuses its buffers."""
        fresh = self.call(case, turn=turn)
        for name, x in vars(call).items():
            if isinstance(x, torch.Tensor):
                inputs.whole_memory(x.detach()).copy_(inputs.whole_memory(getattr(fresh, name)))
        return call

    def run(self, case: Case, call: Call) -> Outputs:
        """Call the backend and wait for it."""
        outputs = self.target.run(case.form, call)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return outputs

    def judge(
        self,
        case: Case,
        outputs: Outputs,
        call: Call,
        *,
        turn: int = 0,
        fill: inputs.Fill = "nan",
        clause: str = "N2",
        hazard: str | None = None,
    ) -> Iterator[Observation]:
        """Compare everything a call returned and left in the pool with the oracle, row by row.

        ``turn`` and ``fill`` are those the call was drawn with.
        """
        chunk = case.chunk_size
        clean = self.call(case, device="cpu", turn=turn, fill=fill)
        if isinstance(call, SequenceCall):
            expected = self.reference.sequence(clean, chunked=case.form == "chunk")
            yield compare(outputs.o, expected["o"], clause, hazard, chunk)
            if call.output_final_state:
                if outputs.final_state is None:
                    yield Observation(
                        False, "S0", "no final state was returned", hazard, expected="a tensor", value="None"
                    )
                else:
                    yield compare(outputs.final_state, expected["final_state"], clause, hazard)
            return
        o, writes = self.reference.pool(clean)
        yield compare(outputs.o, o, clause, hazard, chunk)
        for slot, want in writes.items():
            observation = compare(
                call.pool[slot][None], replace(want, want=want.want[None], bound=want.bound[None]), clause, hazard
            )
            if observation.location is not None:
                place = observation.location.model_copy(update={"tensor": "pool", "row": None, "slot": slot})
                observation = replace(observation, location=place)
            yield observation
        yield self.untouched(call.pool, clean.pool, set(writes))

    def untouched(self, pool: torch.Tensor, before: torch.Tensor, written: set[int]) -> Observation:
        """Check that no byte of a pool's memory changed but the slots named by ``written`` (clause P2).

        ``before`` is the same pool as it was drawn, in memory of the same shape: gaps and guard slots included.
        """
        after, was = (inputs.whole_memory(x).cpu().clone() for x in (pool, before))
        size = pool.element_size()
        after, was = after.view(-1, size), was.view(-1, size)
        changed = (after != was).any(-1)
        place = torch.arange(changed.numel())
        owned = pool.as_strided(pool.shape, pool.stride(), pool.storage_offset())
        index = place.as_strided(owned.shape, owned.stride(), owned.storage_offset())
        for slot in written:
            changed[index[slot].reshape(-1)] = False
        if not bool(changed.any()):
            return Observation(True, "P2")
        at = int(changed.int().argmax())
        slot, where = _slot_of(at, pool, index)
        count = int(changed.sum())
        text = f"{count} elements changed that no write index names; the first lies in {where}"
        values = [number(x[at].clone().view(pool.dtype)[0]) for x in (after, was)]
        location = locate("pool", (slot,)).model_copy(update={"row": None, "slot": slot})
        return Observation(False, "P2", text, "padding-slot-address", location, values[0], values[1])


def _slot_of(element: int, pool: torch.Tensor, places: torch.Tensor) -> tuple[int, str]:
    """Return the slot whose memory holds an element of the pool's storage, and words for it.

    ``places`` has the pool's shape and holds the place in the storage of each of its elements.
    """
    owners = (places == element).nonzero()
    if owners.shape[0]:
        slot = int(owners[0, 0])
        return slot, f"slot {slot}"
    stride = pool.stride(0) or 1
    if places.numel() == 0 or element < int(places.min()):
        slot = (element - pool.storage_offset()) // stride
        return slot, f"the memory before the pool, where slot {slot} would be"
    if element > int(places.max()):
        head = 0 if pool.stride(1) <= stride else -1  # with heads outermost the last head's slots end the pool
        slot = pool.shape[0] - 1 + max((element - int(places[-1, head].flatten()[0])) // stride, 1)
        return slot, f"the memory behind the pool, where slot {slot} would be"
    nearest = int(places.reshape(-1).masked_fill(places.reshape(-1) > element, -1).argmax())
    slot = nearest // places[0].numel()
    return slot, f"the gap behind slot {slot}"


class Probe(ABC):
    """One way to make hazards happen.

    Attributes:
        name: the probe's name, also its file's.
        clause: code of the clause it is mainly about; a backend that declares it unsupported is not probed.
        clauses: every clause its observations may name.
        hazards: names of the hazards it shows.
        forms: forms it applies to.
        cuda_only: whether it needs a GPU.
        alone: whether its cases take so much memory of a GPU that no other may run beside them.
        timeout: seconds one case may take; one that takes longer is tried once more.
        family: family of the operators it applies to.
        judges_values: whether it holds ordinary calls to the oracle; a run without such a probe says nothing.
    """

    name: ClassVar[str]
    clause: ClassVar[str]
    clauses: ClassVar[tuple[str, ...]]
    hazards: ClassVar[tuple[str, ...]]
    forms: ClassVar[tuple[str, ...]] = ("chunk", "recurrent", "decode", "prefill")
    cuda_only: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    timeout: ClassVar[float] = 60.0
    family: ClassVar[str] = "delta_rule"
    judges_values: ClassVar[bool] = False

    @abstractmethod
    def cases(self, plan: Plan) -> Iterator[Case]:
        """Yield the cases of one form and tier; their ids differ."""

    def still_about(self, case: Case) -> bool:
        """Return whether a case of which the user set fields is still about what its label says."""
        return True

    @abstractmethod
    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        """Run one case and yield what was seen; at least one observation."""


def probes_of(operator: Operator) -> dict[str, Probe]:
    """Return the probes of an operator by name."""
    return {name: probe for name, probe in probes().items() if probe.family == operator.family}


@cache
def probes() -> dict[str, Probe]:
    """Return every probe by name, in the order of their ``ORDER`` and name."""
    found = []
    for module in pkgutil.iter_modules(deltaproof.verify.probes.__path__):
        if not module.name.startswith("_"):
            loaded = importlib.import_module(f"deltaproof.verify.probes.{module.name}")
            found.append((getattr(loaded, "ORDER", 100), loaded.PROBE))
    return {probe.name: probe for _, probe in sorted(found, key=lambda item: (item[0], item[1].name))}
