"""A random walk through a state pool: every request is held to the same requests served alone.

Shape legend: N rows of a step, T tokens, H query/key heads, HV value heads, K, V head sizes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from deltaproof.ops.common.calls import DecodeCall, DeltaRuleOptions, PrefillCall, SequenceCall
from deltaproof.state import Debug, DraftField, PoolExhausted, RecurrentField, Snapshot, StatePool, StepPlan
from deltaproof.state.fields import Field
from deltaproof.verify.expected import Expected, Reference
from deltaproof.verify.observation import Observation, compare, same_bits
from deltaproof.verify.serving import drafting
from deltaproof.verify.serving.requests import Drafted, History, Request, Sizes, Tokens, joined
from deltaproof.verify.serving.windows import Step, Windows
from deltaproof.verify.target import Target

LAYERS, LAYER = 3, 1
"""The walk runs in the middle layer; the others show what a stray address hits."""
SIZES = (1, 2, 4, 8)
LONGEST = 80
HAZARD = "aliased-slot"
WEIGHTS = {
    "decode": 40, "extend": 16, "acquire": 12, "hit": 8, "snapshot": 7, "fork": 4, "release": 8, "preempt": 4,
    "swap": 4, "forget": 6, "speculate": 24, "commit": 12, "settle": 8,
}  # fmt: skip
SPECULATIVE = ("speculate", "commit", "settle")


@dataclass
class _Later:
    """An event that is done a few steps from now."""

    walk: Walk
    due: int

    def query(self) -> bool:
        return self.walk.steps >= self.due


class Walk:
    """Requests that come, step, share and go, drawn from a seed.

    Args:
        target: the backend.
        sizes: what it runs on.
        seed: seed of everything.
        device: where it runs.
        exact_rows: whether a row's bits do not depend on the batch it is in (clause I2): a request alone is then a
            batch of one. Otherwise it is a row of a batch of the same shape whose other rows are padding.
        conv: a backend of the convolution, whose windows then live in the same slots and go through the same steps.
    """

    def __init__(
        self, target: Target, sizes: Sizes, seed: int, device: str, *, exact_rows: bool, conv: Any = None
    ) -> None:
        self.target, self.sizes, self.device, self.exact_rows = target, sizes, device, exact_rows
        self.layer = LAYER
        self.draw = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.field = RecurrentField("state", sizes.HV, sizes.K, sizes.V, sizes.state_dtype, sizes.layout)
        self.windows = Windows(conv, sizes, device, seed) if conv is not None else None
        s = sizes
        self.drafts = DraftField(
            "drafts", max(s.drafts, 1), s.H, s.HV, s.K, s.V, s.dtype, torch.float32, s.dtype,
            target.operator.gate_per_channel,
        )  # fmt: skip
        held: list[Field] = [self.field, *([self.windows.field] if self.windows is not None else [])]
        if s.drafts:
            held += [self.drafts, *([self.windows.drafts] if self.windows is not None else [])]
        self.pool = StatePool(
            held, layers=LAYERS, capacity=sizes.capacity, device=device, debug=[Debug.POISON, Debug.GENERATION]
        )
        self.rows = self.pool.bind(self.field, LAYER)
        self.plan = StepPlan(self.pool, sizes=SIZES)
        self.reference = Reference(target.operator)
        self.options = DeltaRuleOptions(
            scale=sizes.K**-0.5, normalize_qk=True, gate_in_kernel=sizes.gate_in_kernel, layout=sizes.layout,
            chunk_size=16, batch_invariant=exact_rows,
        )  # fmt: skip
        # a gate a head, or one a channel
        self.channels = (sizes.K,) if target.operator.gate_per_channel else ()
        gate = [torch.randn(sizes.HV, *shape, generator=self.generator).to(device) for shape in ((), self.channels)]
        self.gate: dict[str, Any] = dict(zip(("A_log", "dt_bias"), gate, strict=True)) if sizes.gate_in_kernel else {}
        self.steps, self.calls, self.named = 0, 0, 0
        self.requests: list[Request] = []
        self.kept: list[tuple[Snapshot, History]] = []
        self.preempted: list[tuple[str, Snapshot, History]] = []
        self.uncommitted: list[Request | None] = []
        left_out = () if sizes.drafts else SPECULATIVE
        self.weights = {name: weight for name, weight in WEIGHTS.items() if name not in left_out}

    def run(self, steps: int) -> Iterator[Observation]:
        """Make some steps and yield what was wrong; ends at the first."""
        for _ in range(steps):
            self.steps += 1
            action = self.draw.choices(list(self.weights), list(self.weights.values()))[0]
            try:
                problem = getattr(self, f"_{action}")()
            except PoolExhausted:
                problem = self._release()
            problem = problem or self._census()
            if problem is not None:
                yield replace(problem, message=f"step {self.steps} ({action}): {problem.message}")
                return
        for problem in (self._end(), self._stray()):
            if problem is not None:
                yield problem
                return
        yield Observation(True, "P2", f"{self.calls} calls")

    def _acquire(self) -> None:
        self.named += 1
        name = f"request {self.named}"
        if self.preempted and self.draw.random() < 0.5:
            name, snapshot, history = self.preempted[0]
            self.requests.append(Request(name, self.pool.acquire(name, start=snapshot), history))
            snapshot.release()
            self.preempted.pop(0)
        else:
            self.requests.append(Request(name, self.pool.acquire(name), History()))

    def _hit(self) -> None:
        if self.kept:
            snapshot, history = self.draw.choice(self.kept)
            self.named += 1
            name = f"hit {self.named}"
            self.requests.append(Request(name, self.pool.acquire(name, start=snapshot), history.copy()))

    def _snapshot(self) -> None:
        request = self._any(stepped=True)
        if request is not None:
            self.kept.append((request.lease.snapshot(position=request.history.length), request.history.copy()))

    def _fork(self) -> None:
        request = self._any(stepped=True)
        if request is not None:
            self.named += 1
            name = f"fork {self.named}"
            self.requests.append(
                Request(name, request.lease.fork(name, position=request.history.length), request.history.copy())
            )

    def _release(self) -> Observation | None:
        """End a request, at whatever point it is: done or given up."""
        request = self._any()
        if request is None:
            self._forget()
            return None
        self.requests.remove(request)
        request.lease.release(self._event())
        return self._judge(request) if self.draw.random() < 0.25 else None

    def _preempt(self) -> None:
        request = self._any(stepped=True)
        if request is not None:
            snapshot = request.lease.snapshot(position=request.history.length)
            request.lease.release(self._event())
            self.requests.remove(request)
            self.preempted.append((request.name, snapshot, request.history))

    def _swap(self) -> None:
        """Move a state out, give the slot back, and bring the state into whatever slot is free."""
        request = self._any(stepped=True)
        if request is None or request.lease.read_slot != request.lease.slot:
            return
        values = {field.name: request.lease.rows(field.name).clone() for field in self.pool.states}
        layouts = {field.name: field.layout for field in self.pool.states}
        position = request.history.length
        request.lease.release()
        request.lease = self.pool.acquire(request.name, outside=True)
        request.lease.fill(values, position=position, layouts=layouts)

    def _forget(self) -> None:
        if self.kept:
            snapshot, _ = self.kept.pop(self.draw.randrange(len(self.kept)))
            snapshot.release(self._event())
        elif self.preempted:
            self.preempted.pop()[1].release()

    def _speculate(self) -> Observation | None:
        return drafting.speculate(self)

    def _commit(self) -> None:
        drafting.commit(self)

    def _settle(self) -> Observation | None:
        return drafting.settle(self)

    def _any(self, *, stepped: bool = False) -> Request | None:
        able = [x for x in self.requests if not stepped or (x.lease.has_initial_state and not x.lease.drafted)]
        return self.draw.choice(able) if able else None

    def _event(self) -> _Later | None:
        return _Later(self, self.steps + self.draw.randrange(1, 6)) if self.draw.random() < 0.3 else None

    def chosen(self, most: int, *, drafted: bool = False) -> list[Request | None]:
        """Draw the rows of a step, with padding among them; with ``drafted`` also of requests with drafts."""
        able = [x for x in self.requests if x.history.length + most <= LONGEST and (drafted or not x.lease.drafted)]
        rows: list[Request | None] = [*self.draw.sample(able, self.draw.randint(0, min(len(able), 5)))]
        for _ in range(self.draw.choice((0, 0, 1, 2))):
            rows.insert(self.draw.randint(0, len(rows)), None)
        return rows

    def _decode(self) -> Observation | None:
        rows = self.chosen(3)
        counts = [0 if row is None else self.draw.choice((1, 1, 1, 2, 3, 0)) for row in rows]
        arguments = self._planned("decode", rows, counts)
        N, T = self.plan.size, max([1, *counts])
        parts = [self.tokens(count) for count in counts]
        tokens = self.padded(parts, N, T)
        call = DecodeCall(**tokens, options=self.options, **self.gate, pool=self.rows, **arguments)
        return self.held("decode", call, rows, parts) or self.convolved("decode", rows, counts, N, T, arguments)

    def _extend(self) -> Observation | None:
        rows = self.chosen(36)
        counts = [0 if row is None else self.draw.choice((1, 7, 15, 16, 17, 33, 36, 0)) for row in rows]
        arguments = self._planned("extend", rows, counts)
        parts = [self.tokens(count) for count in counts]
        tokens = self.padded([joined([*parts, self.tokens(0)])], 1, sum(counts) + self.draw.choice((0, 3)))
        call = PrefillCall(**tokens, options=self.options, **self.gate, pool=self.rows, **arguments)
        T = call.q.shape[1]
        return self.held("prefill", call, rows, parts) or self.convolved("prefill", rows, counts, 1, T, arguments)

    def _planned(self, form: str, rows: list[Request | None], counts: list[int]) -> dict[str, Any]:
        arguments: dict[str, Any] = getattr(self.plan, form)([row and row.lease for row in rows], counts)
        self.plan.guard()
        return arguments

    def tokens(self, count: int) -> Tokens:
        """Draw the next tokens of a request [count, heads, ...]."""
        s = self.sizes
        gate = (s.HV, *self.channels)
        shapes = {"q": (s.H, s.K), "k": (s.H, s.K), "v": (s.HV, s.V), "g": gate, "beta": (s.HV,)}
        found = {name: torch.randn(count, *shape, generator=self.generator) for name, shape in shapes.items()}
        found["g"] = found["g"] if s.gate_in_kernel else -found["g"].abs()
        found["beta"] = found["beta"].sigmoid()
        kinds = {name: torch.float32 if name == "g" else s.dtype for name in shapes}
        return {name: x.to(self.device, kinds[name]) for name, x in found.items()}

    def padded(self, parts: list[Tokens], N: int, T: int) -> Tokens:
        """Return [N, T, heads, ...] with NaN where no token is."""
        like = self.tokens(0)
        found = {name: x.new_full((N, T, *x.shape[1:]), torch.nan) for name, x in like.items()}
        for row, part in enumerate(parts):
            for name, x in part.items():
                found[name][row, : x.shape[0]] = x
        return found

    def held(
        self, form: str, call: DecodeCall | PrefillCall, rows: list[Request | None], parts: list[Tokens]
    ) -> Observation | None:
        """Make a call against the shared pool, and each row's alone; compare outputs, states and all other memory."""
        flat = self.pool.memory("state")._flat
        before, reads = flat.clone(), call.read_index.tolist()
        o = self.target.run(form, call).o
        self.calls += 1
        starts = [0] * (len(rows) + 1)
        for row, part in enumerate(parts):
            starts[row + 1] = starts[row] + part["q"].shape[0]
        for row, (request, part) in enumerate(zip(rows, parts, strict=True)):
            count = part["q"].shape[0]
            place = (row, slice(0, count)) if form == "decode" else (0, slice(starts[row], starts[row + 1]))
            if request is None:
                continue
            fresh = request.history.alone is None
            own, state = self._alone(form, call, row, part, starts, request)
            slot = request.lease.slot
            where = f"{request.name}, row {row} of {form}, {'from zero' if fresh else f'from slot {reads[row]}'}"
            what = f"{where}, against the same request alone"
            seen = same_bits("o", o[place], own, "P2", HAZARD, what)
            seen = seen if not seen.ok else same_bits(f"pool[{slot}]", self.rows[slot], state[0], "P2", HAZARD, what)
            if not seen.ok:
                return seen
            if not bool(o[place].isfinite().all()):
                # its slot held NaN, and so did the one it had alone
                hazard = "appended-cache" if fresh else HAZARD
                return Observation(False, "P1", f"o is not finite: {where}", hazard)
            request.history.alone = state
            if isinstance(call, DecodeCall) and call.drafts is not None:
                request.drafted = Drafted(part, o[place].clone())
            else:
                request.history.tokens.append(part)
                request.history.outputs.append(o[place].clone())
            o[place] = 0
        if bool((o != 0).any()):
            return Observation(False, "P1", f"{form}: o is not 0 where no token is", "padding-slot-address")
        return self.untouched("state", before, [row.lease.slot for row in rows if row is not None])

    def _alone(
        self, form: str, call: Any, row: int, part: Tokens, starts: list[int], request: Request
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one row in a pool of its own; return o [t, HV, V] and the state [1, HV, ., .]."""
        history = request.history
        shape = (1, self.sizes.HV, *self.sizes.layout.inner_shape(self.sizes.K, self.sizes.V))
        fresh, count = history.alone is None, part["q"].shape[0]
        state = torch.full(shape, torch.nan, dtype=self.sizes.state_dtype, device=self.device)
        if history.alone is not None:
            state.copy_(history.alone)
        N = 1 if self.exact_rows else call.read_index.shape[0]
        at = 0 if self.exact_rows else row
        index = torch.full((N,), -1, dtype=torch.int32, device=self.device)
        index[at] = 0
        known = torch.full((N,), not fresh, device=self.device)
        T = max(count, 1) if self.exact_rows else call.q.shape[1]
        changes: dict[str, Any] = {"pool": state, "read_index": index, "write_index": index, "has_initial_state": known}
        if form == "decode":
            empty = {name: x[:0] for name, x in part.items()}
            changes |= self.padded([*[empty] * at, part], N, T)
            changes["num_tokens"] = torch.zeros(N, dtype=torch.int32, device=self.device)
            changes["num_tokens"][at] = count
            if call.drafts is not None:
                changes |= drafting.alone(self, call, row, at, request)
            place: tuple[int, slice] = (at, slice(0, count))
        elif self.exact_rows:
            changes |= self.padded([part], 1, count)
            changes["cu_seqlens"] = torch.tensor([0, count], dtype=torch.int32, device=self.device)
            place = (0, slice(0, count))
        else:
            tokens = self.padded([], 1, T)
            for name, x in part.items():
                tokens[name][0, starts[row] : starts[row + 1]] = x
            changes |= tokens
            place = (0, slice(starts[row], starts[row + 1]))
        return self.target.launch(form, call.with_(**changes)).o[place], state

    def convolved(
        self,
        form: str,
        rows: list[Request | None],
        counts: list[int],
        B: int,
        T: int,
        arguments: dict[str, Any],
        taken: list[torch.Tensor | None] | None = None,
    ) -> Observation | None:
        """Run the same step of the convolution; windows must be each request's last inputs, to the bit.

        ``taken`` are the inputs that each row takes in where the step is a speculative one.
        """
        if self.windows is None:
            return None
        before = self.pool.memory("window")._flat.clone()
        step = Step(
            form, (B, T), counts, [None if row is None else row.lease.slot for row in rows], arguments,
            lines=[None if row is None else row.history.line for row in rows], taken=taken,
            drafts=None if taken is None else self.pool.bind(self.windows.drafts, LAYER),
        )  # fmt: skip
        found, lines, inputs = self.windows.step(self.pool.bind(self.windows.field, LAYER), step)
        for row, line, own in zip(rows, lines, inputs, strict=True):
            if row is not None:
                row.history.line = line
                if taken is not None and row.drafted is not None:
                    row.drafted.line = own
        return found or self.untouched("window", before, [row.lease.slot for row in rows if row is not None])

    def untouched(self, field: str, before: torch.Tensor, written: list[int]) -> Observation | None:
        memory = self.pool.memory(field)
        flat = memory._flat
        for slot in written:
            row = memory.rows_of(slot)[LAYER]
            before[row] = flat[row]
        kind = {2: torch.int16, 4: torch.int32}[flat.element_size()]
        changed = (flat.view(kind) != before.view(kind)).any(1).nonzero().flatten().tolist()
        if not changed:
            return None
        layer, row = divmod(changed[0] - 1, memory.rows_a_layer)
        text = f"{field}: row {row} of layer {layer} changed, which no row of the step names"
        return Observation(False, "P2", text, "padding-slot-address")

    def _judge(self, request: Request) -> Observation | None:
        """Hold what a request got to the oracle, from its first token on."""
        history = request.history
        if not history.length or self.sizes.state_dtype is not torch.float32:
            return None
        tokens = {name: x[None].cpu() for name, x in joined(history.tokens).items()}
        gate = {name: x.cpu() for name, x in self.gate.items()}
        call = SequenceCall(**tokens, options=self.options, **gate, output_final_state=True)
        bounds = [self.reference.sequence(call, chunked=chunked) for chunked in (False, True)]
        assert history.alone is not None
        got = {"o": torch.cat(history.outputs)[None]}
        if request.drafted is None or not request.drafted.accepted:
            # else the state is still to take in what was accepted
            got["final_state"] = history.alone
        for name, x in got.items():
            # a part of the tokens went through decode and the rest through prefill
            either: Expected = replace(bounds[0][name], bound=bounds[0][name].bound + bounds[1][name].bound)
            seen = compare(x, either, "N2")
            if not seen.ok:
                return replace(seen, message=f"{request.name}, {history.length} tokens, the oracle: {seen.message}")
        return None

    def _census(self) -> Observation | None:
        found = self.pool.inspect()
        slots = found.free + found.draining + len(found.holders)
        if found.aliased or found.leaked or slots != found.capacity:
            return Observation(False, "P2", f"the pool lost count: {found}", HAZARD)
        for request in self.requests:
            if request.lease.position not in (None, request.history.length):
                text = f"{request.lease!r} is at {request.lease.position}, its request at {request.history.length}"
                return Observation(False, "P2", text, HAZARD)
        return None

    def _end(self) -> Observation | None:
        """Release everything; the pool is then as empty as it was."""
        problem = None
        self._commit()
        for request in self.requests:
            request.lease.release()
            problem = problem or self._judge(request)
        for snapshot in (*(item[0] for item in self.kept), *(item[1] for item in self.preempted)):
            snapshot.release()
        self.steps += 10
        if problem is None and self.pool.available != self.pool.capacity:
            return Observation(False, "P2", f"slots are still held at the end: {self.pool.inspect()}", HAZARD)
        return problem

    def _stray(self) -> Observation | None:
        wrong = self.pool.disturbed()
        if wrong:
            return Observation(False, "P2", f"written though nobody held them: {', '.join(wrong)}", HAZARD)
        if self.plan.stale():
            return Observation(False, "P2", "a step used a slot of another generation", HAZARD)
        return None
