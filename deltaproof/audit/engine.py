"""The run: files to rules, in one process or several, and what they see to one report."""

from __future__ import annotations

import gc
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from pydantic import ValidationError

import deltaproof
from deltaproof.audit.assemble import Assembled, assemble
from deltaproof.audit.baseline import split
from deltaproof.audit.cache import Cache, key_of
from deltaproof.audit.discover import Found, default_root, discover
from deltaproof.audit.inspect_file import FileResult, inspect_file
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Rule
from deltaproof.contracts.errors import ContractError
from deltaproof.reports.audit import AuditReport, Finding, worst
from deltaproof.reports.visible import visible

MOST_JOBS = 8
FEW_FILES = 24
"""Up to so many files one process is faster than several."""
CHUNKS_A_JOB = 8
Progress = Callable[[int, int], None]


def default_jobs() -> int:
    """Return how many processes an audit uses where nothing is said."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_JOBS)


def run(
    targets: Sequence[Path],
    rules: Sequence[Rule],
    *,
    root: Path | None = None,
    exclude: Sequence[str] = (),
    jobs: int | None = None,
    cache: Cache | None = None,
    known: Mapping[str, Mapping[str, int]] | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> AuditReport:
    """Audit files.

    Args:
        targets: files and folders that are reported on.
        rules: the rules that run.
        root: the tree that rules may look at, and what paths are relative to. Without it rules see the targets, and
            paths are relative to the project around them.
        exclude: patterns of paths that are left out, relative to the root.
        jobs: processes; as many as there are cores by default.
        cache: where results are kept; None to keep none.
        known: the baseline, as ``baseline.load`` gives it.
        command: how this run was called.
        progress: is called with the number of files done and of all.

    Raises:
        ContractError: a target does not exist or lies outside ``root``, or ``root`` is no folder.
    """
    begun = time.monotonic()
    base, model, found = _files(targets, root, exclude)
    result: Assembled | None = None
    key = ""
    if cache is not None:
        key = key_of(model, found.files, base, rules, found.skipped)
        result = _cached(cache, key)
    if result is None:
        shown = progress or (lambda done, total: None)
        files = list(_inspect(Work(base, tuple(model), tuple(rules)), found.files, jobs or default_jobs(), shown))
        skipped = [(visible(_relative(path, base)), reason) for path, reason in found.skipped]
        result = assemble(files, rules, skipped)
        if cache is not None and not result.failed:
            cache.store(key, result.model_dump_json(by_alias=True))
    new = result.findings
    old: list[Finding] = []
    if known is not None:
        checked = set(result.checked)
        new, old = split(result.findings, known, lambda path: path not in checked and (base / path).exists())
    return AuditReport(
        root=visible(str(base)),
        targets=[visible(_relative(Path(os.path.abspath(target)), base)) for target in targets],
        rules=[rule.name for rule in rules],
        findings=worst(new),
        known=worst(old),
        compared=known is not None,
        suppressed=result.suppressed,
        dismissed=result.dismissed,
        analysed=result.analysed,
        not_analysed=result.not_analysed,
        checked=result.checked,
        versions={"deltaproof": deltaproof.__version__, "python": platform.python_version()},
        command=visible(command),
        seconds=round(time.monotonic() - begun, 3),
    )


def _files(targets: Sequence[Path], root: Path | None, exclude: Sequence[str]) -> tuple[Path, list[Path], Found]:
    """Return the root, the files that rules may look at, and those that are reported on."""
    if root is not None and not root.is_dir():
        raise ContractError("--root", "a folder that exists", str(root))
    base = Path(os.path.abspath(root)) if root is not None else default_root(targets)
    if root is not None:
        for target in targets:
            place = Path(os.path.abspath(target))
            if base != place and base not in place.parents:
                raise ContractError("PATH", f"files and folders inside --root {root}", str(target))
    found = discover(targets, base, exclude)
    if root is None:
        return base, found.files, found
    return base, sorted({*discover([base], base, exclude).files, *found.files}), found


def _relative(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.as_posix()


def _cached(cache: Cache, key: str) -> Assembled | None:
    try:
        return Assembled.model_validate(cache.load(key))
    except ValidationError:
        return None


class Work:
    """What every process needs: the tree and the rules. Each builds the model of its own."""

    def __init__(self, root: Path, model: tuple[Path, ...], rules: tuple[Rule, ...]) -> None:
        self.root = root
        self.model = model
        self.rules = rules

    def inspect(self, files: Sequence[Path]) -> Iterator[FileResult]:
        project = Project(self.root, self.model)
        for path in files:
            yield inspect_file(path, project, self.rules)


_project: Project | None = None
_rules: tuple[Rule, ...] = ()


def _start(work: Work) -> None:
    global _project, _rules
    _project, _rules = Project(work.root, work.model), work.rules
    # Trees hold hardly any cycles, and there are millions of nodes to look through.
    gc.disable()


def _inspect_chunk(files: Sequence[Path]) -> list[FileResult]:
    assert _project is not None, "_start has run in this process"
    return [inspect_file(path, _project, _rules) for path in files]


def _inspect(work: Work, files: Sequence[Path], jobs: int, progress: Progress) -> Iterator[FileResult]:
    total = len(files)
    progress(0, total)
    if jobs == 1 or total <= FEW_FILES:
        with _without_collector():
            for done, result in enumerate(work.inspect(files), 1):
                progress(done, total)
                yield result
        return
    done = 0
    chunks = _chunks(files, jobs * CHUNKS_A_JOB)
    lost: list[Path] = []
    with _pool(work, jobs) as pool:
        waiting: dict[Future[list[FileResult]], list[Path]] = {
            pool.submit(_inspect_chunk, part): part for part in chunks
        }
        for future in as_completed(waiting):
            try:
                results = future.result()
            except BrokenProcessPool:
                lost += waiting[future]
                continue
            done += len(results)
            progress(done, total)
            yield from results
    for result in _one_by_one(work, lost):
        done += 1
        progress(done, total)
        yield result


def _one_by_one(work: Work, files: Sequence[Path]) -> Iterator[FileResult]:
    """Inspect files in a process apart, so that it shows which of them ends it; then go on in a new one."""
    waiting = list(files)
    while waiting:
        with _pool(work, 1) as pool:
            while waiting:
                path = waiting.pop(0)
                try:
                    yield from pool.submit(_inspect_chunk, [path]).result()
                except BrokenProcessPool:
                    yield FileResult(
                        visible(_relative(path, work.root)), "the process that read it was ended", passing=True
                    )
                    break


def _pool(work: Work, jobs: int) -> ProcessPoolExecutor:
    # A fork is quicker, but only safe while no other thread holds a lock.
    forkable = threading.active_count() == 1 and platform.system() == "Linux"
    context = get_context("fork" if forkable else "spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(work,))


def _chunks(files: Sequence[Path], count: int) -> list[list[Path]]:
    """Return runs of neighbours of about the same size in bytes."""
    sizes = [_size(path) for path in files]
    share = max(1, sum(sizes) // count)
    chunks: list[list[Path]] = []
    filled = share
    for path, size in zip(files, sizes, strict=True):
        if filled >= share:
            chunks.append([])
            filled = 0
        chunks[-1].append(path)
        filled += size
    return chunks


def _size(path: Path) -> int:
    try:
        # Every file costs something, however short.
        return path.stat().st_size + 500
    except OSError:
        return 500


@contextmanager
def _without_collector() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
