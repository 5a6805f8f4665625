"""Tensors that are strided by another tensor's stride though their own is passed."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from deltaproof.audit.flow.access import Access
from deltaproof.audit.flow.coordinates import addresses
from deltaproof.audit.flow.stride_names import owned_strides
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.rule import Hit, Quote, Seen


def borrowed_findings(module: Module, kernel: Function) -> Iterator[Seen]:
    """Yield addresses that go by another tensor's stride while their own one is passed and does nothing."""
    owned = owned_strides(kernel)
    if len({each.tensor for each in owned.values()}) < 2:
        return
    used: dict[str, dict[str, Access]] = {}
    for address in addresses(kernel):
        for term in address.terms:
            for factor in term.stride:
                if factor.text in owned:
                    used.setdefault(address.access.base, {}).setdefault(factor.text, address.access)
    read = {node.id for node in kernel.nodes if isinstance(node, ast.Name)}
    for base, strides in used.items():
        mine = {each.axis: each for each in owned.values() if each.tensor == base}
        for name, access in strides.items():
            other = owned[name]
            own = mine.get(other.axis)
            if other.tensor == base or own is None or own.name in strides or own.name in read:
                continue
            if name not in used.get(other.tensor, {}):
                continue
            yield Hit(
                module,
                access.call,
                kernel,
                f"`{base}` is strided by `{name}`, which is `{other.tensor}`'s; "
                f"its own `{own.name}` is passed and unused.",
                "possible",
                f"Use `{own.name}`.",
                [Quote(module, used[other.tensor][name].call, f"`{other.tensor}` uses it too")],
            )
            break
