"""Tensors that a kernel walks with another one's stride, and layouts that are asked for without a call."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from deltaproof.audit.flow.borrowed import borrowed
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Hit, Quote, Seen


def borrowed_rows(module: Module, kernel: Function, project: Project) -> Iterator[Seen]:
    """Yield the rows that go by another tensor's stride: at the launch where it hands over a caller's, else inside."""
    for launch in project.launches_of(kernel):
        found = borrowed(kernel, launch, project)
        if not found:
            continue
        first = next((each for each in found if each.own), found[0])
        yield Hit(
            launch.host.module if first.own else module,
            launch.call if first.own else first.access.call,
            launch.host if first.own else kernel,
            f"`{first.argument.id}` is walked with `{first.stride}`, the stride of `{first.owner.id}`; "
            f"`{first.entry.name}` takes `{first.asked}` from its caller and nobody compares their rows.",
            "possible",
            f"Pass a stride for each tensor, or make `{first.asked}` contiguous in `{first.entry.name}`.",
            [
                Quote(module, first.access.call, f"`{first.base}` goes by `{first.stride}`"),
                Quote(launch.host.module, launch.call, "the launch"),
            ],
        )
        return


def uncalled(module: Module, host: Function) -> Iterator[Seen]:
    """Yield conditions that name ``x.is_contiguous`` and do not call it: a method is always true."""
    if not module.holds(".is_contiguous"):
        return
    for node in host.nodes:
        if not isinstance(node, ast.Attribute) or node.attr != "is_contiguous":
            continue
        around = host.parents.get(node)
        tested = isinstance(around, (ast.If, ast.IfExp, ast.While, ast.Assert)) and around.test is node
        if (
            tested
            or isinstance(around, ast.BoolOp)
            or (isinstance(around, ast.UnaryOp) and isinstance(around.op, ast.Not))
        ):
            yield Hit(
                module,
                node,
                host,
                f"`{ast.unparse(node)}` is a method that is not called: it counts as true for every tensor.",
                "proven",
                f"Write `{ast.unparse(node)}()`.",
            )
