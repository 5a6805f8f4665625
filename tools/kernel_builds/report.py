"""Builds as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .build import Build
from .record import Launch


def ordered(launches: Iterable[Launch]) -> list[Launch]:
    """Return launches by kernel, in the order of the cases."""
    return sorted(launches, key=lambda launch: launch.kernel)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = 2  # the first two columns are words, the others numbers
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def launch_lines(launches: Sequence[Launch]) -> list[str]:
    """Return what would be compiled."""
    return _table(
        [
            ("kernel", "first case", "cases", "warps", "stages"),
            *(
                (x.kernel, x.facts[0]["label"], str(len(x.facts)), str(x.options.num_warps), str(x.options.num_stages))
                for x in launches
            ),
        ]
    )


def build_lines(builds: Sequence[Build]) -> list[str]:
    """Return the table: registers a thread, bytes of spills, stack and shared memory, CPU seconds to compile."""
    rows = [("kernel", "first case", "warps", "regs", "spills", "stack", "shared", "seconds")]
    for build in builds:
        usage, launch = build.usage, build.launch
        numbers = (usage.registers, usage.spilled, usage.stack, build.shared) if usage else ("-",) * 4
        rows.append(
            (
                launch.kernel,
                launch.facts[0]["label"],
                str(launch.options.num_warps),
                *map(str, numbers),
                f"{build.seconds:.1f}",
            )
        )
    return _table(rows)


def as_json(builds: Sequence[Build], problems: Sequence[str], version: str, target: str) -> dict[str, Any]:
    """Return everything that is known about the builds, for a file."""
    return {
        "triton": version,
        "target": target,
        "problems": list(problems),
        "builds": [
            {
                "kernel": build.launch.kernel,
                "cases": [facts["label"] for facts in build.launch.facts],
                "signature": dict(build.launch.signature),
                "constants": {name: _plain(value) for name, value in build.launch.constexprs.items()},
                "num_warps": build.launch.options.num_warps,
                "num_stages": build.launch.options.num_stages,
                "registers": build.usage and build.usage.registers,
                "spill_stores": build.usage and build.usage.spill_stores,
                "spill_loads": build.usage and build.usage.spill_loads,
                "stack": build.usage and build.usage.stack,
                "shared": build.shared,
                "seconds": round(build.seconds, 2),
                "error": build.error,
            }
            for build in builds
        ],
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
