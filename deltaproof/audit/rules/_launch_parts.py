"""Outputs that are launched in parts, all but the first of which stay unwritten."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from deltaproof.audit.flow import launch_parts
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Hit, Quote, Seen


def parts(kernel: Function, project: Project) -> Iterator[Seen]:
    """Yield masks that only the first of several launches passes."""
    told: set[int] = set()
    for part in launch_parts.masked_away(kernel, project):
        if id(part.test) not in told:
            told.add(id(part.test))
            yield Hit(
                kernel.module,
                part.test,
                kernel,
                f"`{ast.unparse(part.test)}` holds an index with `{part.offset}` in it against `{part.size}`, the rows "
                "of one launch: later launches store nothing.",
                "likely",
                f"Compare the index within the launch, without `{part.offset}`.",
                (Quote(part.launch.host.module, part.loop, "one launch a part"),),
            )
