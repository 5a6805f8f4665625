"""Outputs that a call writes into a copy, and tensors of stride 0 that a callee takes for dense."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from deltaproof.audit.flow.expanded import expanded
from deltaproof.audit.flow.lost_outputs import lost_outputs
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Hit, Quote, Seen


def copied_outputs(module: Module, host: Function, project: Project) -> Iterator[Seen]:
    """Yield outputs that are lost, because they are copies of strided views."""
    for lost in lost_outputs(host, project):
        source = ast.unparse(lost.source)[:60]
        yield Hit(
            module,
            lost.copied,
            host,
            f"The output is a copy: {lost.how} of `{source}` gives a new tensor, and nothing takes what is written "
            "there.",
            "likely",
            f"Write the result back into `{source}`, or pass a `.view()` of it, which raises instead of copying.",
            [Quote(module, lost.call, "who writes it")],
        )


def stride_zero(module: Module, host: Function, project: Project) -> Iterator[Seen]:
    """Yield expanded tensors that compiled code gets without a copy."""
    for found in expanded(host, project):
        given = ast.unparse(found.argument)[:60]
        yield Hit(
            module,
            found.made,
            host,
            f"`{given}` is expanded, with a stride of 0, and nothing makes it dense: {found.why}.",
            "possible",
            "Add `.contiguous()` behind the expansion, or pass the strides.",
            [Quote(module, found.call, "who gets it")],
        )
