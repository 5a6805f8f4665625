"""Which spills are allowed: rows of ``benchmarks/spills.json``, and what is wrong with a set of builds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .build import SHARED_LIMIT, Build
from .record import Launch

CLEAN_DTYPES = ("bf16", "fp16")
CLEAN_SIZES = (64, 128)
"""Head sizes that may never spill in those dtypes, listed or not."""


@dataclass(frozen=True)
class Allowed:
    """One row: a kernel that may spill under a condition.

    Attributes:
        where: facts of a case or constants of the kernel, each a value or a list of values; dtype, K and V among them.
        bytes: the most that it may spill by Triton version; another version may not spill there.
    """

    kernel: str
    where: Mapping[str, Any]
    bytes: Mapping[str, int]
    reason: str

    def values(self, name: str) -> list[Any]:
        """Return the values of a fact that the row is about."""
        value = self.where[name]
        return value if isinstance(value, list) else [value]

    def covers(self, launch: Launch) -> bool:
        """Return whether the row is about this launch, as one of its cases asks for it."""
        return launch.kernel == self.kernel and any(
            all({**launch.constexprs, **facts}.get(name) in self.values(name) for name in self.where)
            for facts in launch.facts
        )

    def __str__(self) -> str:
        return f"{self.kernel} where {json.dumps(self.where)}"


def read_rows(path: Path) -> list[Allowed]:
    """Read the file; ValueError names a row that is malformed, has no reason or allows what is never allowed."""
    rows = []
    for raw in json.loads(path.read_text(encoding="utf-8")):
        if set(raw) != {"kernel", "where", "bytes", "reason"}:
            raise ValueError(f"a row of {path.name} needs kernel, where, bytes and reason, got {sorted(raw)}")
        row = Allowed(**raw)
        if not row.reason.strip():
            raise ValueError(f"{row}: needs a reason")
        if not {"dtype", "K", "V"} <= set(row.where):
            raise ValueError(f"{row}: its condition must name dtype, K and V")
        if set(CLEAN_DTYPES) & set(row.values("dtype")) and all(set(CLEAN_SIZES) & set(row.values(x)) for x in "KV"):
            raise ValueError(f"{row}: {' and '.join(CLEAN_DTYPES)} with K, V in {CLEAN_SIZES} may never spill")
        rows.append(row)
    return rows


def write_rows(path: Path, rows: Sequence[Allowed]) -> None:
    """Write the file."""
    raw = [{"kernel": r.kernel, "where": r.where, "bytes": r.bytes, "reason": r.reason} for r in rows]
    path.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def refreshed(rows: Iterable[Allowed], builds: Sequence[Build], version: str) -> list[Allowed]:
    """Return the rows with one version's byte counts as they are now; rows that no version needs are gone."""
    kept = []
    for row in rows:
        counts = {name: count for name, count in row.bytes.items() if name != version}
        spilled = max((_spilled(build) for build in builds if row.covers(build.launch)), default=0)
        if spilled:
            counts[version] = spilled
        if counts:
            kept.append(replace(row, bytes=dict(sorted(counts.items()))))
    return kept


def must_be_clean(launch: Launch) -> bool:
    """Return whether one of the launch's cases may never spill."""
    return any(
        facts["dtype"] in CLEAN_DTYPES and facts["K"] in CLEAN_SIZES and facts["V"] in CLEAN_SIZES
        for facts in launch.facts
    )


def _spilled(build: Build) -> int:
    return build.usage.spilled if build.usage else 0


def template(build: Build) -> str:
    """Return a row for one spill, without its reason."""
    where = {name: build.launch.facts[0][name] for name in ("dtype", "K", "V")}
    return json.dumps({"kernel": build.launch.kernel, "where": where, "bytes": {}, "reason": ""})


def problems(builds: Sequence[Build], rows: Sequence[Allowed], version: str, *, whole: bool) -> list[str]:
    """Return what is wrong; ``whole`` says that every kernel was built, so that unused rows show."""
    found = []
    used: set[int] = set()
    for build in builds:
        launch, spilled = build.launch, _spilled(build)
        name = f"{launch.kernel} ({launch.facts[0]['label']})"
        if build.error:
            found.append(f"{name}: {build.error}")
        if build.shared > SHARED_LIMIT:
            found.append(f"{name}: {build.shared} bytes of shared memory, more than {SHARED_LIMIT}")
        if not spilled:
            continue
        covering = [row for row in rows if row.covers(launch) and version in row.bytes]
        used |= {id(row) for row in covering}
        if must_be_clean(launch):
            found.append(f"{name}: spills {spilled} bytes, which is never allowed for its dtype and head sizes")
        elif not covering:
            found.append(f"{name}: spills {spilled} bytes and is not listed; a row would be {template(build)}")
        elif spilled > (most := max(row.bytes[version] for row in covering)):
            found.append(f"{name}: spills {spilled} bytes, its row allows {most}")
    if whole:
        unused = (row for row in rows if version in row.bytes and id(row) not in used)
        found += [f"{row}: listed, but nothing spills there with triton {version} (--write drops it)" for row in unused]
    return found
