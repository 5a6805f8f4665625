"""ignored-tile-parameter

## What it does
Reports a tile or chunk size that is a literal although the caller passes one: a variable set to a number beside a
parameter that means the same, a parameter that is overwritten by a number, a number handed on in its place, a helper
called without the chunk size that its neighbours are given, a number where a sibling reads the size from a tensor that
both are given, a stage that falls back to another size than the one before it was given, a default that the function's
own assertion refuses, functions of one file that assert different sizes, and a number in a function (or in the forward
of an autograd function) whose caller is given that size and pads or splits the data by it.

## Why it matters
All is well while every caller passes the literal. With another size, the index tables, the paddings and the kernel
disagree about where a chunk begins: rows are skipped or read twice, and nothing fails.

## Example
Bad:

```python
def backward(q, cu_seqlens=None, chunk_size: int = 64):
    BT = 64
    indices = prepare_chunk_indices(cu_seqlens, chunk_size)
    return launch(q, indices, BT)
```

Good:

```python
def backward(q, cu_seqlens=None, chunk_size: int = 64):
    BT = chunk_size
    indices = prepare_chunk_indices(cu_seqlens, chunk_size)
    return launch(q, indices, BT)
```

## Do this instead
Take the size from the parameter everywhere, or drop the parameter. Where only one size works, raise on any other.

## Seen in
Backward launchers with a literal block size beside a chunk_size argument; chunked reference code whose padding helper
fell back to its default.

## Known limits
Sizes are told by their names. A literal tile of one operand that a shared helper applies to another operand, and an
autotuning candidate that is too large for the data's own grouping, are not seen.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.sizes_below import set_below
from deltaproof.audit.flow.stage_sizes import beside_tensor, next_stage
from deltaproof.audit.flow.trace import names_in, resolved
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_SIZE = re.compile(
    r"^_?(bt|chunk_size\w*|chunk_len|block_t|block_size_t|block_size|tile_size|chunk|block_tokens?)$", re.I
)
_TIME = re.compile(r"^_?(bt|chunk_size\w*|chunk_len|block_t|block_size_t|chunk)$", re.I)
FIX = "Use the parameter, or raise where another value comes."


def _literal(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value > 1


def _asserted(function: Function, name: str) -> tuple[ast.AST, int] | None:
    """Return where a function refuses every value of a parameter but one, and the value."""
    for node in function.nodes:
        tests: list[tuple[ast.expr, type[ast.cmpop]]] = []
        if isinstance(node, ast.Assert):
            tests = [(node.test, ast.Eq)]
        elif isinstance(node, ast.If) and any(isinstance(inner, ast.Raise) for inner in node.body):
            tests = [(node.test, ast.NotEq)]
        for test, op in tests:
            if (
                isinstance(test, ast.Compare)
                and isinstance(test.left, ast.Name)
                and test.left.id == name
                and isinstance(test.ops[0], op)
                and len(test.ops) == 1
                and isinstance(test.comparators[0], ast.Constant)
                and isinstance(test.comparators[0].value, int)
            ):
                return node, test.comparators[0].value
    return None


def _restricted(function: Function, name: str) -> bool:
    """Whether a function tests its parameter at all and leaves where it does not like it."""
    for node in function.nodes:
        if isinstance(node, ast.Assert) and name in names_in(node.test):
            return True
        raises = isinstance(node, ast.If) and any(isinstance(inner, ast.Raise) for inner in node.body)
        if raises and name in names_in(node.test):  # type: ignore[attr-defined]
            return True
    return False


def _stages(module: Module, project: Project) -> Iterator[Seen]:
    """Yield numbers that a sibling reads from a tensor, and stages of one computation with different sizes."""
    for function, node, sibling, read in beside_tensor(module, _TIME):
        yield Hit(
            module,
            node,
            function,
            f"`{ast.unparse(node.targets[0])}` is the literal {ast.unparse(node.value)}, and `{sibling.name}` takes it "
            f"from the same tensor: `{ast.unparse(read)}`.",
            "possible",
            f"Use `{ast.unparse(read)}` here too.",
            (Quote(module, read, "the sibling"),),
        )
    for function in module.functions:
        for call, name, number, later, default in next_stage(module, project, function, _TIME):
            yield Hit(
                module,
                call,
                function,
                f"`{name}` is {number} here, and `{ast.unparse(later.func)}`, which takes the result, falls back to "
                f"{default}.",
                "likely",
                f"Pass one `{name}` to both.",
                (Quote(module, later, "the next stage"),),
            )


def _below(module: Module) -> Iterator[Seen]:
    """Yield numbers in a function whose caller prepares the data by a size that it is given."""
    for function, node, caller, call, size in set_below(module):
        yield Hit(
            module,
            node,
            function,
            f"`{ast.unparse(node)}`, and `{caller.name}`, which calls this, takes `{size}` and shapes the data by it.",
            "possible",
            f"Take `{size}` as an argument.",
            (Quote(module, call, "the call that does not pass it"),),
        )


class IgnoredTileParameter(Rule):
    """See the module's docstring."""

    code = "HZ701"
    name = "ignored-tile-parameter"
    triggers = ("chunk_size", "BT", "block_size", "block_t", "BLOCK_T", "chunk_len", "tile_size", "block_M", "BLOCK_M")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield sizes that do not follow the parameter."""
        yield from _stages(module, project)
        yield from _below(module)
        asserted: dict[str, tuple[Function, ast.AST, int]] = {}
        for function in module.functions:
            names = [param.name for param in function.params if _SIZE.match(param.name)]
            yield from self._literals(module, function, names)
            yield from self._calls(module, project, function)
            yield from self._handed(module, function, names)
            for name in names:
                found = _asserted(function, name)
                if found is None:
                    continue
                node, value = found
                default = next(param.default for param in function.params if param.name == name)
                if isinstance(default, ast.Constant) and isinstance(default.value, int) and default.value != value:
                    yield Hit(
                        module,
                        node,
                        function,
                        f"`{name}` must be {value} here and is {default.value} by default.",
                        "proven",
                        f"Make the default {value}.",
                        (Quote(module, default, "the default"),),
                    )
                other = asserted.setdefault(name, (function, node, value))
                if other[2] != value:
                    yield Hit(
                        module,
                        node,
                        function,
                        f"`{name}` must be {value} here and {other[2]} in `{other[0].name}` of the same file.",
                        "possible",
                        "Take the size from the caller in both, or assert one size.",
                        (Quote(module, other[1], "another size is asserted here"),),
                    )

    def _literals(self, module: Module, function: Function, names: list[str]) -> Iterator[Seen]:
        if not names:
            return
        for node in function.nodes:
            if not isinstance(node, ast.Assign) or not _literal(node.value):
                continue
            target = node.targets[0]
            if not isinstance(target, ast.Name) or not _SIZE.match(target.id):
                continue
            around = function.parents.get(node)
            if around is not function.node:
                continue  # one of several branches: a choice, not a constant
            if target.id in names:
                name = target.id
                read = False
            else:
                same = [each for each in names if _TIME.match(each)] if _TIME.match(target.id) else []
                if not same:
                    continue
                name = same[0]
                read = True
            value = node.value.value  # type: ignore[attr-defined]
            if _restricted(function, name):
                yield Drop(module, node, function, f"the function tests `{name}` and refuses other values")
                continue
            used = any(isinstance(each, ast.Name) and each.id == name for each in function.nodes)
            if read and not used:
                verdict, more = "possible", f"nothing reads `{name}`"
            else:
                verdict, more = "likely", f"`{name}` is used beside it" if read else "what the caller passed is lost"
            yield Hit(
                module,
                node,
                function,
                f"`{target.id}` is the literal {value} where the caller passes `{name}`; {more}.",
                verdict,  # type: ignore[arg-type]
                FIX,
                (Quote(module, function.node, f"the parameter `{name}`"),),
            )

    def _handed(self, module: Module, function: Function, names: list[str]) -> Iterator[Seen]:
        """Yield calls that are handed a literal for a size which the function itself is given."""
        for call in function.calls if names else ():
            for keyword in call.keywords:
                name = keyword.arg or ""
                if name not in names or not _TIME.match(name) or not _literal(keyword.value):
                    continue
                if _restricted(function, name) or any(name in names_in(g.test) for g in guards(function, call)):
                    yield Drop(module, call, function, f"the function tests `{name}`")
                    continue
                yield Hit(
                    module,
                    keyword.value,
                    function,
                    f"`{name}` is the literal {keyword.value.value} in this call, and the caller passes `{name}`.",  # type: ignore[attr-defined]
                    "likely",
                    FIX,
                    (Quote(module, function.node, f"the parameter `{name}`"),),
                )

    def _calls(self, module: Module, project: Project, function: Function) -> Iterator[Seen]:
        """Yield calls that leave the size to its default while their neighbours pass one."""
        groups: dict[str, list[ast.Call]] = {}
        for call in function.calls:
            if isinstance(call.func, ast.Name):
                groups.setdefault(call.func.id, []).append(call)
        for name, calls in groups.items():
            if len(calls) < 2:
                continue
            passed: dict[str, ast.Call] = {}
            for call in calls:
                for keyword in call.keywords:
                    if keyword.arg and _SIZE.match(keyword.arg) and not _literal(resolved(function, keyword.value)):
                        passed.setdefault(keyword.arg, call)
            if not passed:
                continue
            callee = project.function(module.resolve(calls[0].func) or name, module)
            if callee is None:
                continue
            order = [param.name for param in callee.params]
            for size, sibling in passed.items():
                param = next((each for each in callee.params if each.name == size), None)
                if param is None or not _literal(param.default):
                    continue
                for call in calls:
                    given = {keyword.arg for keyword in call.keywords}
                    positional = len(call.args) > order.index(size)
                    starred = None in given or any(isinstance(each, ast.Starred) for each in call.args)
                    if size in given or positional or starred:
                        continue
                    default = param.default.value  # type: ignore[union-attr]
                    yield Hit(
                        module,
                        call,
                        function,
                        f"`{name}` is called without `{size}` and falls back to {default}; a neighbouring call passes "
                        "the caller's.",
                        "likely",
                        f"Pass `{size}` here too.",
                        (Quote(module, sibling, "the neighbour that passes it"),),
                    )


RULE = IgnoredTileParameter()
