"""autotuned-in-place

## What it does
Reports a Triton kernel under ``triton.autotune`` that loads and stores (or atomically updates) memory of one and the
same pointer parameter, where the autotuner is given neither ``restore_value`` nor ``reset_to_zero`` for it.

## Why it matters
On the first call with a new key the autotuner runs every candidate many times on the caller's own tensors. A kernel
that shifts a cache or adds to a buffer does so on every run: the first result is wrong, later ones are right.

## Example
Bad:

```python
@triton.autotune(configs=[triton.Config({"BD": 64}), triton.Config({"BD": 128})], key=["D"])
@triton.jit
def shift(cache, D, BD: tl.constexpr):
    o_d = tl.program_id(0) * BD + tl.arange(0, BD)
    b_c = tl.load(cache + o_d, mask=o_d < D)
    tl.store(cache + o_d, b_c + 1, mask=o_d < D)
```

Good:

```python
@triton.autotune(
    configs=[triton.Config({"BD": 64}), triton.Config({"BD": 128})], key=["D"], restore_value=["cache"]
)
@triton.jit
def shift(cache, D, BD: tl.constexpr):
    o_d = tl.program_id(0) * BD + tl.arange(0, BD)
    b_c = tl.load(cache + o_d, mask=o_d < D)
    tl.store(cache + o_d, b_c + 1, mask=o_d < D)
```

## Do this instead
Name the parameter in ``restore_value`` (or ``reset_to_zero`` where it starts from zero), or write to another tensor.

## Seen in
The update step of a causal convolution, which shifted its cache dozens of times on the first call.

## Known limits
One tensor under two names is seen where a launch spells it. Memory that a kernel writes before it reads it is taken to
be scratch. Load and store count as one place where their addresses are sums of the same terms.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.trace import alternatives, names_in
from deltaproof.audit.model.names import dotted
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project


ACCUMULATING = ("atomic_add", "atomic_xor")
"""Atomics whose result depends on how often they run."""


class AutotunedInPlace(Rule):
    """See the module's docstring."""

    code = "HZ703"
    name = "autotuned-in-place"
    triggers = ("autotune",)

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield pointers that an autotuned kernel updates."""
        for kernel in module.functions:
            tuner = kernel.decorator("autotune") if kernel.kind == "triton" else None
            if tuner is None or _single(module, tuner):
                continue
            saved = _saved(tuner)
            updated = _updated(kernel)
            for name, (store, load) in updated.items():
                if saved is None:
                    yield Drop(module, store.call, kernel, "what the autotuner restores is not spelled out")
                elif name in saved:
                    yield Drop(module, store.call, kernel, f"the autotuner restores `{name}`")
                else:
                    what = "adds to" if load is store else "reads and overwrites"
                    yield Hit(
                        module,
                        tuner,
                        kernel,
                        f"The autotuned kernel {what} `{name}`, and the autotuner does not restore it: its trial runs "
                        "change the caller's tensor.",
                        "likely" if load is store else "proven",
                        f"Add `{name}` to restore_value (or reset_to_zero).",
                        (Quote(module, load.call, "read here"), Quote(module, store.call, "and written here")),
                    )
            if saved is not None:
                yield from _shared(module, project, kernel, tuner, saved | set(updated))


def _single(module: Module, tuner: ast.Call) -> bool:
    """Whether there is but one configuration: the autotuner then runs no trial."""
    given = next((each.value for each in tuner.keywords if each.arg == "configs"), None)
    if given is None and tuner.args:
        given = tuner.args[0]
    if isinstance(given, ast.Call) and not given.args and not given.keywords:
        made = module.by_qualname.get(dotted(given.func))
        returned = [each.value for each in made.nodes if isinstance(each, ast.Return)] if made is not None else []
        given = returned[0] if len(returned) == 1 else given
    elif isinstance(given, ast.Name):
        values = [
            each.value
            for each in module.tree.body
            if isinstance(each, ast.Assign) and any(dotted(target) == given.id for target in each.targets)
        ]
        given = values[0] if len(values) == 1 else given
    if isinstance(given, ast.ListComp):
        return all(not each.ifs and _one(each.iter) for each in given.generators)
    return given is not None and _one(given)


def _one(node: ast.expr) -> bool:
    return isinstance(node, (ast.List, ast.Tuple)) and len(node.elts) == 1 and not isinstance(node.elts[0], ast.Starred)


def _saved(tuner: ast.Call) -> set[str] | None:
    """Return the names that are restored or set to zero; None where they are not spelled out.

    What a hook of a configuration names in strings counts: such hooks set outputs to zero.
    """
    found: set[str] = set()
    for node in ast.walk(tuner):
        if not isinstance(node, ast.keyword) or node.arg not in ("pre_hook", "post_hook"):
            continue
        named = {str(part.value) for part in ast.walk(node.value) if isinstance(part, ast.Constant) and part.value}
        if not named and not isinstance(node.value, ast.Constant):
            return None
        found |= named
    for keyword in tuner.keywords:
        if keyword.arg in ("restore_value", "reset_to_zero"):
            if not isinstance(keyword.value, (ast.List, ast.Tuple)):
                if isinstance(keyword.value, ast.Constant) and keyword.value.value is None:
                    continue
                return None
            found |= {str(each.value) for each in keyword.value.elts if isinstance(each, ast.Constant)}
    return found


def _updated(kernel: Function) -> dict[str, tuple[Access, Access]]:
    """Return the pointer parameters that are updated: the store and the load before it."""
    found: dict[str, tuple[Access, Access]] = {}
    pointers = kernel.param_names - kernel.constexprs
    loads: dict[str, list[Access]] = {}
    written: set[str] = set()
    for access in accesses(kernel):
        base = access.base
        if base not in pointers or base in written:
            continue
        if access.kind == "load":
            loads.setdefault(base, []).append(access)
        elif access.kind == "atomic":
            if kernel.called(access.call).endswith(ACCUMULATING):
                found.setdefault(base, (access, access))
        else:
            place = _place(access)
            load = next((each for each in loads.get(base, []) if _place(each) == place), None)
            if load is not None:
                found.setdefault(base, (access, load))
            elif base not in loads:
                written.add(base)  # scratch: what is read later was written by this run
    return found


def _shared(module: Module, project: Project, kernel: Function, tuner: ast.Call, known: set[str]) -> Iterator[Seen]:
    """Yield tensors that a launch hands over under two names, of which the kernel reads one and writes the other."""
    stores: dict[str, Access] = {}
    loads: dict[str, list[Access]] = {}
    for access in accesses(kernel):
        if access.base not in kernel.param_names - kernel.constexprs or access.kind == "atomic":
            continue
        if access.kind == "store":
            stores.setdefault(access.base, access)
        elif access.base not in stores:
            loads.setdefault(access.base, []).append(access)
    if not stores.keys() - known or not loads:
        return
    for launch in project.launches_of(kernel):
        bound = launch.bound(kernel)
        meant = {name: _tensors(launch, bound[name]) for name in {*stores, *loads} & bound.keys()}
        for name, store in stores.items():
            place = _index(store)
            same = [
                each
                for other, reads in loads.items()
                if other != name and not {name, other} & known and meant.get(other, set()) & meant.get(name, set())
                for each in reads
                if _index(each) == place
            ]
            if not same:
                continue
            known = known | {name}
            yield Hit(
                module,
                tuner,
                kernel,
                f"The autotuned kernel reads `{same[0].base}` and writes `{name}`, to which a launch gives one tensor, "
                "and the autotuner does not restore it: its trial runs change the caller's tensor.",
                "likely",
                f"Add `{name}` to restore_value, or write to another tensor.",
                (
                    Quote(launch.host.module, launch.call, "launched on one tensor under two names"),
                    Quote(module, same[0].call, "read here"),
                    Quote(module, store.call, "and written here"),
                ),
            )


def _tensors(launch: Launch, argument: ast.expr) -> set[str]:
    """Return the names of the tensors that an argument may be."""
    found = {dotted(each) for each in alternatives(launch.host, argument)} | {dotted(argument)}
    return found - {"", "None"}


def _index(access: Access) -> frozenset[str]:
    """Return the names that an address is made of, but for its base and strides."""
    parts: list[ast.AST] = list(access.addends)
    if access.block is not None and access.block.offsets is not None:
        parts.append(access.block.offsets)
    names = {name for part in parts for name in names_in(part)}
    return frozenset(name for name in names if name != access.base and "stride" not in name)


def _place(access: Access) -> tuple[str, ...]:
    """Return how an address is spelled: its terms; of a block pointer its base and the names of its offsets."""
    place = {ast.unparse(term) for term in access.addends}
    if access.block is not None and access.block.offsets is not None:
        place |= names_in(access.block.offsets)
    return tuple(sorted(place))


RULE = AutotunedInPlace()
