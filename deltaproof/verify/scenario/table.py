"""The whole table, on several processes."""

from __future__ import annotations

import math
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor

import torch

from deltaproof.reports.scenario import AdapterInfo, Group, Interval, Row, ScenarioReport, Verdict
from deltaproof.verify.scenario import runs
from deltaproof.verify.scenario.faults import ENTRIES
from deltaproof.verify.scenario.runs import OURS, PLAIN, Tokens, alone, applies, model, run
from deltaproof.verify.scenario.strategies import STRATEGIES
from deltaproof.verify.scenario.workload import workload

SEEDS = (0, 1, 2)
REQUESTS = 32
"""Requests a seed that are served to their end."""
NORMAL = 1.959964
"""Standard deviations of a normal distribution that 95 % lie within."""

Place = tuple[str, str, runs.Place]


def wilson(count: int, total: int) -> Interval | None:
    """Return a share with Wilson's interval at 95 %; None of nothing."""
    if not total:
        return None
    share, z = count / total, NORMAL**2 / total
    middle = (share + z / 2) / (1 + z)
    half = NORMAL * math.sqrt(share * (1 - share) / total + z / (4 * total)) / (1 + z)
    return Interval(share=share, low=max(middle - half, 0.0), high=min(middle + half, 1.0))


def places(names: Iterable[str] | None = None) -> list[Place]:
    """Return strategy, adapter and pool of every row, in the table's order."""
    chosen = [entry for entry in ENTRIES if names is None or entry.name in names]
    return [
        (strategy.name, entry.name, pool)
        for entry in chosen
        for strategy in STRATEGIES
        for pool in (PLAIN, OURS)
        if applies(strategy, entry)
    ]


def run_table(
    jobs: int, seeds: Sequence[int] = SEEDS, requests: int = REQUESTS, adapters: Iterable[str] | None = None,
    advance: Callable[[str], None] | None = None,
) -> ScenarioReport:  # fmt: skip
    """Run the table on ``jobs`` processes.

    Args:
        jobs: number of processes, each with one torch thread.
        seeds: seeds of the workloads.
        requests: requests a seed.
        adapters: names of the rows to run; all by default.
        advance: called with a word for every task that is done.
    """
    started = time.perf_counter()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deltaproof.verify.scenario.runs"])
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=model) as pool:
        references: dict[int, Future[Tokens]] = {seed: pool.submit(alone, seed, requests) for seed in seeds}
        told: dict[int, Tokens] = {}
        for seed, future in references.items():
            told[seed] = future.result()
            if advance is not None:
                advance("alone")
        tasks = [
            (place, pool.submit(run, *place, seed, requests, told[seed]))
            for place in places(adapters)
            for seed in seeds
        ]
        rows = []
        for place, task in tasks:
            rows.append(task.result())
            if advance is not None:
                advance(place[1])
    right = sum(list(job.answers) == told[seed].get(job.name) for seed in seeds for job in workload(requests, seed))
    report = _report(rows, seeds, requests)
    accuracy = wilson(right, requests * len(seeds))
    return report.model_copy(update={"alone_accuracy": accuracy, "seconds": time.perf_counter() - started})


def tasks_of(seeds: Sequence[int], adapters: Iterable[str] | None = None) -> int:
    """Return how many tasks ``run_table`` has."""
    return len(seeds) * (1 + len(places(adapters)))


def _report(rows: list[Row], seeds: Sequence[int], requests: int) -> ScenarioReport:
    ran = {row.adapter for row in rows}
    faults = {entry.name for entry in ENTRIES if not entry.clean and entry.name in ran}
    changed = [row for row in rows if row.verdict is Verdict.CHANGED]
    found: dict[Place, list[Row]] = {}
    for row in rows:
        found.setdefault((row.strategy, row.adapter, row.pool), []).append(row)
    return ScenarioReport(
        seeds=list(seeds),
        requests_a_seed=requests,
        strategies={strategy.name: strategy.what for strategy in STRATEGIES},
        adapters=[
            AdapterInfo(name=entry.name, what=entry.what, clean=entry.clean, story=entry.story)
            for entry in ENTRIES
            if entry.name in ran
        ],
        alone_accuracy=Interval(share=0, low=0, high=0),
        clean_rows_changed=sum(row.clean for row in changed),
        faults_seen=len({row.adapter for row in changed if row.pool == PLAIN} & faults),
        faults_total=len(faults),
        ours_rows_changed=sum(row.pool == OURS for row in changed),
        groups=[_group(group) for group in found.values()],
        rows=rows,
        python=platform.python_version(),
        torch=torch.__version__,
    )


WORST = (Verdict.CHANGED, Verdict.SKIPPED, Verdict.UNSEEN, Verdict.NAMED, Verdict.STOPPED, Verdict.SAME)
"""Verdicts of a group's rows: it has the first of these that one of them has."""


def _group(rows: list[Row]) -> Group:
    requests, changed = sum(row.requests for row in rows), sum(row.changed for row in rows)
    first = next((row for row in rows if row.first is not None), None)
    return Group(
        strategy=rows[0].strategy,
        adapter=rows[0].adapter,
        pool=rows[0].pool,
        clean=rows[0].clean,
        verdict=min((row.verdict for row in rows), key=WORST.index),
        requests=requests,
        unserved=sum(row.unserved for row in rows),
        changed=changed,
        changed_share=wilson(changed, requests),
        accuracy=wilson(sum(row.right for row in rows), requests),
        touched=sum(row.touched for row in rows),
        first=first.first if first is not None else None,
        first_seed=first.seed if first is not None else None,
        named=next((row.named for row in rows if row.named is not None), None),
    )
