"""One row of the table: a strategy, an adapter and a pool, on the requests of one seed."""

from __future__ import annotations

import time
from typing import Literal

import torch

from deltaproof.reports.scenario import Divergence, Row, Verdict
from deltaproof.verify.observation import Skipped
from deltaproof.verify.scenario.adapters import Operators
from deltaproof.verify.scenario.engine import Engine, Rules, Served
from deltaproof.verify.scenario.faults import ENTRIES, Entry
from deltaproof.verify.scenario.model import RecallModel, load
from deltaproof.verify.scenario.pool_store import PoolStore
from deltaproof.verify.scenario.store import Store
from deltaproof.verify.scenario.strategies import STRATEGIES, Strategy
from deltaproof.verify.scenario.workload import DRAFTED, Job, workload

FAR_SLOTS = 18
"""Slots of pools whose slots lie far apart, with every strategy: some offsets then wrap to another slot's place."""
SPECULATING_SLOTS = 48
"""Slots of a plain pool with a state a token."""
Place = Literal["plain", "ours"]
PLAIN: Place = "plain"
OURS: Place = "ours"
Tokens = dict[str, list[int]]

_model: list[RecallModel] = []


def model() -> RecallModel:
    """Return the trained model, loaded once a process."""
    torch.set_num_threads(1)
    if not _model:
        _model.append(load())
    return _model[0]


def alone(seed: int, requests: int) -> Tokens:
    """Serve each request that stays in an engine of its own, in a pool of its own; return its answers."""
    said: Tokens = {}
    for job in workload(requests, seed):
        if job.gives_up is None:
            only = Job(job.name, job.script, job.answers, 0)
            engine = Engine(model(), PoolStore(2), Operators(), Rules(running=1, caches=False))
            said |= engine.run([only]).said
    return said


def store_for(strategy: Strategy, entry: Entry, pool: Place) -> Store:
    """Return the pool of a row; raise Skipped where its memory cannot be had."""
    slots = FAR_SLOTS if entry.spread else strategy.slots
    if pool == OURS:
        return entry.ours(slots, speculates=entry.speculates, spread=entry.spread)
    if entry.speculates:
        slots = SPECULATING_SLOTS
    columns = DRAFTED + 1 if entry.speculates else 1
    return entry.plain(slots, extra=strategy.extra, columns=columns, spread=entry.spread)


def applies(strategy: Strategy, entry: Entry) -> bool:
    """Return whether an adapter has a row with a strategy.

    A speculating request has slots enough, and does not overlap: ``extra_buffer`` would be ``no_buffer`` again.
    """
    return (strategy.caches or not entry.caches) and not (strategy.extra and entry.speculates)


def run(strategy_name: str, adapter: str, pool: Place, seed: int, requests: int, reference: Tokens) -> Row:
    """Serve the requests and compare every answer with that of the request alone."""
    started = time.process_time()
    strategy = next(item for item in STRATEGIES if item.name == strategy_name)
    entry = next(item for item in ENTRIES if item.name == adapter)
    jobs = workload(requests, seed)
    row = Row(
        strategy=strategy.name, adapter=entry.name, pool=pool, seed=seed, clean=entry.clean, verdict=Verdict.SKIPPED
    )
    try:
        store = store_for(strategy, entry, pool)
    except Skipped as reason:
        return row.model_copy(update={"named": str(reason), "unserved": len(reference)})
    served = Engine(model(), store, entry.adapter(), strategy.rules(entry.speculates)).run(jobs)
    changed = {name: said for name, said in served.said.items() if said != reference[name]}
    right = sum(list(job.answers) == served.said.get(job.name) for job in jobs)
    found: dict[str, object] = {
        "requests": len(served.said),
        "unserved": len(reference) - len(served.said),
        "changed": len(changed),
        "right": right,
        "accuracy": right / len(served.said) if served.said else None,
        "touched": served.touched,
        "first": _first(served, changed, reference),
        "verdict": _verdict(entry, pool, served, bool(changed)),
        "named": served.named,
        "stopped_at": served.stopped_at,
        "steps": served.launched,
        "prefix_hits": served.hits,
        "seconds": time.process_time() - started,
    }
    return row.model_copy(update=found)


def _verdict(entry: Entry, pool: Place, served: Served, changed: bool) -> Verdict:
    if changed:
        return Verdict.CHANGED
    if entry.clean:
        return Verdict.SAME
    if pool == PLAIN:
        return Verdict.UNSEEN
    return Verdict.NAMED if served.named else Verdict.STOPPED


def _first(served: Served, changed: Tokens, reference: Tokens) -> Divergence | None:
    """Return the answer that was the first to differ."""
    places = []
    for name, said in changed.items():
        token = next(at for at, (a, b) in enumerate(zip(said, reference[name], strict=True)) if a != b)
        places.append(Divergence(request=name, token=token, step=served.steps[name][token]))
    return min(places, key=lambda place: place.step, default=None)
