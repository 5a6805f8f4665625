"""A small continuous-batching engine.

Requests wait, are admitted while there are slots, are prefilled in parts of ``CHUNK`` tokens and decode one token a
step, in batches padded to captured sizes. Rows of padding hold what an earlier step left in the static input buffer.
The device runs what was launched in order; the host sees a step's answers ``lag`` launches later, so with a lag of 1 a
request that is done has one more row, whose output is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.verify.scenario.adapters import Adapter
from deltaproof.verify.scenario.model import RecallModel
from deltaproof.verify.scenario.requests import PAST, Kept, Request
from deltaproof.verify.scenario.step import Step
from deltaproof.verify.scenario.store import SIZES, Full, Store, padded
from deltaproof.verify.scenario.workload import CHUNK, DRAFTED, Job, draft

TOGETHER = 2
"""Prompts that one step prefills a part of."""
SCRIPTED = 10
"""Tokens of a prompt that a speculating engine decodes, as those of a grammar or a tool: drafts of them are right."""
ENDLESS = 20_000


@dataclass(frozen=True)
class Rules:
    """How an engine serves.

    Attributes:
        running: requests that it serves at once.
        caches: whether prefixes are kept.
        lag: launches after which the host sees a step's answers.
        speculates: whether steps carry drafted tokens.
        most_kept: prefixes that are kept, at most.
    """

    running: int = 6
    caches: bool = True
    lag: int = 0
    speculates: bool = False
    most_kept: int = 6


@dataclass
class Served:
    """What came out.

    Attributes:
        said: answers by request that was served to its end.
        steps: the step that gave each answer.
        touched: slots that somebody held and no row of the step was given, and that a step changed; summed over steps.
        named: what was refused or seen to be wrong, in words.
        stopped_at: the step at which the store could no longer be trusted, or None.
        launched: steps that were run.
        hits: requests that began with a kept prefix.
    """

    said: dict[str, list[int]] = field(default_factory=dict)
    steps: dict[str, list[int]] = field(default_factory=dict)
    touched: int = 0
    named: str | None = None
    stopped_at: int | None = None
    launched: int = 0
    hits: int = 0


class Engine:
    """Serves a workload.

    Args:
        model: the model.
        store: who keeps its states.
        adapter: the delta rule.
        rules: how it serves.
    """

    def __init__(self, model: RecallModel, store: Store, adapter: Adapter, rules: Rules) -> None:
        self.model, self.store, self.adapter, self.rules = model, store, adapter, rules
        self.waiting: deque[Job] = deque()
        self.running: list[Request] = []
        self.cache: dict[tuple[int, ...], Kept] = {}
        self.launched: deque[list[Request]] = deque()
        self.inputs = torch.zeros(SIZES[-1], DRAFTED + 1, dtype=torch.long)
        self.served, self.now, self.last_form = Served(), 0, ""

    @torch.no_grad()
    def run(self, jobs: Sequence[Job]) -> Served:
        """Serve requests to their ends, or until the store can no longer be trusted."""
        coming = deque(jobs)
        while coming or self.waiting or self.running:
            while coming and coming[0].arrives <= self.now:
                self.waiting.append(coming.popleft())
            self._give_up()
            self._admit()
            trusted = self._launch()
            self.now += 1
            if not trusted:
                self.served.stopped_at = self.now
                break
            self._see()
            assert self.now < ENDLESS, "the engine does not come to an end"
        self.served.named = self.served.named or self.store.named
        return self.served

    def _give_up(self) -> None:
        for request in list(self.running):
            least = request.job.gives_up
            if least is not None and (request.parts >= least or not request.prefilling):
                self.running.remove(request)
                self.store.release(request, aborted=True)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.rules.running:
            request = Request.of(self.waiting[0], SCRIPTED if self.rules.speculates else 0)
            kept = self._hit(request)
            try:
                self._admitted(request, kept)
            except Full:
                if self._evict(kept):
                    continue
                return
            self.waiting.popleft()
            self.running.append(request)

    def _admitted(self, request: Request, kept: Kept | None) -> None:
        try:
            self.store.admit(request, kept)
        except ContractError as error:
            if isinstance(kept, Kept):
                # refused: the kept prefix is none, so the request starts from its first token
                self.served.named = self.served.named or str(error)
                del self.cache[kept.prefix]
                kept = None
            self.store.admit(request, None)
        if kept is not None:
            kept.used = self.now
            request.restart(kept)
            self.served.hits += 1

    def _hit(self, request: Request) -> Kept | None:
        prompt = request.prompt
        for end in range((len(prompt) - 1) // CHUNK * CHUNK, 0, -CHUNK):
            if prompt[:end] in self.cache:
                return self.cache[prompt[:end]]
        return None

    def _evict(self, but: Kept | None) -> bool:
        """Forget the prefix that was not used for longest; return whether there was one."""
        able = [kept for kept in self.cache.values() if kept is not but and self.store.idle(kept.handle)]
        if not able:
            return False
        oldest = min(able, key=lambda kept: kept.used)
        del self.cache[oldest.prefix]
        self.store.drop(oldest.handle)
        return True

    def _keep(self, request: Request) -> None:
        prefix = request.prompt[: request.fed]
        if not self.rules.caches or request.fed % CHUNK or prefix in self.cache or not request.prefilling:
            return
        if len(self.cache) >= self.rules.most_kept and not self._evict(None):
            return
        try:
            handle = self.store.keep(request)
        except Full:
            return
        past = request.past[:, :, : PAST + request.fed].clone()
        self.cache[prefix] = Kept(prefix, handle, past, self.now)

    def _launch(self) -> bool:
        """Run the next batch, if there is one; return whether the store can still be trusted."""
        prompts = [request for request in self.running if request.prefilling][:TOGETHER]
        ready = [request for request in self.running if not request.prefilling]
        if prompts and (self.last_form != "prefill" or not ready):
            self.last_form = "prefill"
            rows, counts = prompts, [min(CHUNK - x.fed % CHUNK, len(x.prompt) - x.fed) for x in prompts]
            tokens = [request.prompt[request.fed : request.fed + n] for request, n in zip(rows, counts, strict=True)]
        elif ready:
            self.last_form = "decode"
            rows = ready
            tokens = [self._known(request) for request in rows]
            counts = [len(part) for part in tokens]
        else:
            self.launched.append([])
            return True
        others = self.store.others(rows)
        before = self.store.content(others) if others else None
        best = self._run(self.last_form, rows, counts, tokens)
        self.served.launched += 1
        self._advance(rows, counts, tokens, best)
        self.launched.append(list(rows))
        if before is not None:
            self.served.touched += int((self.store.content(others) != before).any(1).sum())
        trusted = not self.store.watch()
        if self.last_form == "prefill":
            for request in rows:
                self._keep(request)
        return trusted

    def _known(self, request: Request) -> tuple[int, ...]:
        """Return what a row of decode is fed: what its state has not seen, and drafts."""
        known = tuple(request.tokens[request.fed :]) or (request.tokens[-1],)
        if self.rules.speculates and len(known) == 1:
            return known + draft(request.job, len(request.tokens), DRAFTED)
        return known

    def _run(
        self, form: str, rows: Sequence[Request], counts: Sequence[int], tokens: Sequence[tuple[int, ...]]
    ) -> list[torch.Tensor]:
        step = Step(form, rows, counts, self.store.plan(form, rows, counts), self.store, self.adapter)
        if form == "prefill":
            best = step.run(self.model, torch.tensor([token for part in tokens for token in part])[None])
            return list(best[0].split(list(counts)))
        T = max(counts)
        for at, part in enumerate(tokens):
            self.inputs[at, : len(part)] = torch.tensor(part)
        return list(step.run(self.model, self.inputs[: padded(len(rows)), :T].contiguous())[: len(rows)])

    def _advance(
        self, rows: Sequence[Request], counts: Sequence[int], tokens: Sequence[tuple[int, ...]],
        best: Sequence[torch.Tensor],
    ) -> None:  # fmt: skip
        """Take a step's results, on the device."""
        for request, count, part, row in zip(rows, counts, tokens, best, strict=True):
            if request.prefilling:
                request.fed += count
                request.parts += 1
                if not request.prefilling:
                    request.advance(int(row[count - 1]), self.now)
                continue
            known = min(count, len(request.tokens) - request.fed)
            stand = max(known, 1)
            request.advance(int(row[stand - 1]), self.now)
            while stand < count and len(request.tokens) > request.fed + stand:
                if request.tokens[request.fed + stand] != part[stand]:
                    break
                stand += 1
                request.advance(int(row[stand - 1]), self.now)
            if self.rules.speculates:
                stand = self.store.settle(request, stand, count, count - known)
            request.fed += stand

    def _see(self) -> None:
        """See the answers of a step on the host, and let go who is done."""
        while len(self.launched) > self.rules.lag:
            for request in self.launched.popleft():
                request.seen = len(request.said)
                if request.seen < len(request.job.answers) or request not in self.running:
                    continue
                self.running.remove(request)
                self.served.said[request.job.name] = request.said
                self.served.steps[request.job.name] = request.steps
                self.store.release(request, aborted=False)
