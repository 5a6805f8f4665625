"""padding-slot-address

## What it does
Follows every slot index that a kernel reads from memory (``state_indices``, ``slot_ids``, ``cache_indices``) to the
addresses that are built from it. It reports an address built from the index as it was read, and a store through an
index that was clamped to a live slot. It also reports two neighbours of this: a host function that gathers a pool with
such indices and writes it back with them (Python's ``[-1]`` is the last slot), and sequence numbers that are compared
with each other although both may be the padding number.

## Why it matters
Batches are padded to the sizes that CUDA graphs were captured for. The rows that fill them carry -1, or another number
that no request owns. Used raw, -1 addresses the memory before the pool. Clamped to 0, it addresses the state of the
request that owns slot 0, and the row's garbage is stored there. A clamp is not a guard; what counts is a guard that
skips the store.

## Example
Bad:

```python
@triton.jit
def step(pool, slot_ids, x, K: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ids + row).to(tl.int64)
    slot = tl.maximum(slot, 0)
    o_k = tl.arange(0, K)
    tl.store(pool + slot * K + o_k, tl.load(x + row * K + o_k))
```

Good:

```python
@triton.jit
def step(pool, slot_ids, x, K: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ids + row).to(tl.int64)
    o_k = tl.arange(0, K)
    if slot >= 0:
        tl.store(pool + slot * K + o_k, tl.load(x + row * K + o_k))
```

## Do this instead
Skip the row: return early, or put ``slot >= 0`` into the mask of the store and of the load. Define the row's output
(zero) as well. On the host, select the rows whose index is not negative before the pool is indexed.

## Seen in
Decode kernels of linear-attention and state-space models, where padded rows of a captured batch read and overwrote the
memory before the pool; later versions redirected them to slot 0 and stored there.

## Known limits
Which tensors hold slot indices is told by their names. A guard in the caller, which filters padding before the launch,
is not seen; nor is one in a helper that the index is handed to. Rows that pad a ragged batch are taken to be empty, so
a test of the length guards them. That an index has no upper bound is not reported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import accesses
from deltaproof.audit.flow.slot_guards import SlotGuards
from deltaproof.audit.flow.slots import is_slot_name, slot_reads, tainted_names, touches, uses, walk_values
from deltaproof.audit.flow.trace import alternatives
from deltaproof.audit.model.names import snaked
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_SEQUENCE = re.compile(r"(^|_)(seq|segment|doc|sequence)_?(idx|ids?)(_|$)")
_POOL = re.compile(r"(state|pool|cache|h0)")
FIX = "Skip the row (early return, or the test in the mask of every load and store) and define its output."


class PaddingSlotAddress(Rule):
    """See the module's docstring."""

    code = "HZ302"
    name = "padding-slot-address"
    stable = True
    triggers = (
        "slot",
        "Slot",
        "StateI",
        "state_i",
        "states_i",
        "cache_i",
        "pool_i",
        "conv_i",
        "ssm_i",
        "batch_i",
        "h0_",
        "initial_i",
        "seq_id",
        "segment_id",
    )

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield addresses of padded rows."""
        for function in module.functions:
            if function.is_kernel:
                yield from self._kernel(module, function)
                yield from self._sequences(module, function)
            elif not module.in_main(function.node):
                yield from self._host(module, function)

    def _kernel(self, module: Module, function: Function) -> Iterator[Seen]:
        reads = slot_reads(function)
        if not reads:
            return
        kernel = SlotGuards(function, reads)
        told: set[tuple[int, bool]] = set()
        shown: set[tuple[ast.AST, bool]] = set()
        for use in uses(function, reads):
            walked = list(walk_values(function, use.address, reads))
            clamps = [kernel.clamps[node] for node in walked if node in kernel.clamps]
            if clamps and not use.stores:
                continue
            for read in (node for node in reads if node in walked):
                guard = kernel.guard(use)
                name = _name(function, read)
                if guard is not None:
                    line = getattr(guard, "lineno", 0)
                    yield Drop(module, use.node, function, f"guarded at line {line}, which tests {name}")
                    continue
                read_quote = Quote(module, read, f"{name} is read here and may be padding")
                for clamp in clamps:
                    if (id(clamp), True) not in told:
                        told.add((id(clamp), True))
                        yield Hit(
                            module,
                            clamp,
                            function,
                            f"{_clamped(module, clamp)} becomes that of a real slot where it is padding, and the row "
                            "is stored there.",
                            "likely",
                            FIX,
                            (read_quote, Quote(module, use.node, "stored through the clamped slot")),
                        )
                if not clamps and (id(read), use.stores) not in told:
                    told.add((id(read), use.stores))
                    if (use.node, use.stores) in shown:
                        continue  # another read of the same index, said above
                    shown.add((use.node, use.stores))
                    does = "stores to" if use.stores else "reads"
                    yield Hit(
                        module,
                        use.node,
                        function,
                        f"`{name}` comes from `{_tensor(function, read)}` and {does} the pool untested: "
                        "a padded row's negative slot lies outside it.",
                        "likely" if use.stores else "possible",
                        FIX,
                        (read_quote,),
                    )

    def _sequences(self, module: Module, function: Function) -> Iterator[Seen]:
        names = [param.name for param in function.params if _SEQUENCE.search(snaked(param.name).lower())]
        if not names:
            return
        loads = [access for access in accesses(function) if access.kind == "load" and access.base in names]
        reads: list[ast.expr] = [access.call for access in loads]
        reads += [
            node
            for node in function.nodes
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in names
        ]
        held = tainted_names(function, reads)
        compares = [
            node
            for node in function.nodes
            if isinstance(node, ast.Compare) and len(node.ops) == 1 and touches(node, reads, held)
        ]
        found = []
        for node in compares:
            left = {each for each in walk_values(function, node.left, reads) if each in reads}
            right = {each for each in walk_values(function, node.comparators[0], reads) if each in reads}
            if isinstance(node.ops[0], ast.Eq) and left and right and left != right:
                if any(_last(each) for each in left | right):
                    found.append(node)
            elif bool(left) != bool(right):
                return  # compared with a number: padding is told apart
        for node in found:
            yield Hit(
                module,
                node,
                function,
                f"two numbers of `{names[0]}` are compared with each other only: where the last one is padding (-1), "
                "padding equals it and is taken as a sequence.",
                "possible",
                "Ask as well that the number is not negative.",
            )

    def _host(self, module: Module, function: Function) -> Iterator[Seen]:
        if not any(name.endswith("s") and is_slot_name(name) for name in function.param_names):
            return
        gathers: dict[str, ast.Subscript] = {}
        scatters: list[tuple[str, ast.Subscript]] = []
        for node in function.nodes:
            if not isinstance(node, ast.Subscript) or not _POOL.search(ast.unparse(node.value).lower()):
                continue
            name = _index_name(function, node)
            if name and isinstance(node.ctx, ast.Store):
                scatters.append((name, node))
            elif name:
                gathers.setdefault(name, node)
        for name, scatter in scatters:
            gather = gathers.get(name)
            if gather is None or _compared(function, name) or _refused(function, name):
                continue
            pool = ast.unparse(scatter.value)
            yield Hit(
                module,
                gather,
                function,
                f"`{pool}` is gathered and written back with `{name}`, of which nobody asks whether it is negative: "
                "-1 is the last slot here.",
                "likely",
                "Select the rows whose index is not negative before indexing, or hand the indices to a kernel that "
                "skips them.",
                (Quote(module, scatter, "written back with the same indices"),),
            )


def _name(function: Function, read: ast.expr) -> str:
    """Return the variable that a read was given to."""
    statement = function.statement(read)
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return ast.unparse(read)[:60]


def _clamped(module: Module, clamp: ast.AST) -> str:
    if isinstance(clamp, ast.If):
        return f"The index tested by `{ast.unparse(clamp.test)}`"
    return f"`{module.quote(clamp)[:80]}`: the index"


def _tensor(function: Function, read: ast.expr) -> str:
    if isinstance(read, ast.Subscript):
        return ast.unparse(read.value)
    return next((access.base for access in accesses(function) if access.call is read), "memory")


def _index_name(function: Function, node: ast.Subscript) -> str:
    """Return the parameter that a subscript indexes with, if its name is that of slot indices."""
    first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) and node.slice.elts else node.slice
    for each in alternatives(function, first):
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute):
            each = each.func.value  # a cast: ``indices.long()``
        if not isinstance(each, ast.Name) or each.id not in function.param_names:
            continue
        if each.id.endswith("s") and is_slot_name(each.id):
            return each.id
    return ""


def _last(read: ast.expr) -> bool:
    """Whether a read is of the last number of a stretch, to whose state the others are added."""
    place = read.args[0] if isinstance(read, ast.Call) and read.args else read
    return any(
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Sub)
        and isinstance(node.right, ast.Constant)
        and node.right.value == 1
        for node in ast.walk(place)
    )


def _refused(function: Function, name: str) -> bool:
    """Whether the indices also go to a call of torch that raises on a negative one."""
    for call in function.calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("index_select", "index_copy_", "index_add_"):
            for argument in call.args:
                held = {
                    part.id
                    for each in alternatives(function, argument)
                    for part in ast.walk(each)
                    if isinstance(part, ast.Name)
                }
                if name in held:
                    return True
    return False


def _compared(function: Function, name: str) -> bool:
    """Whether the values of a tensor are compared or chosen from anywhere in a function."""
    for node in function.nodes:
        if not isinstance(node, ast.Compare) or isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            continue
        if isinstance(node.left, ast.Name) and node.left.id == name:
            return True
    return False


RULE = PaddingSlotAddress()
