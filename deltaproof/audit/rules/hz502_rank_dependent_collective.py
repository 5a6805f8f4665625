"""A collective that not every rank reaches, or that waits for a rank outside its group.

## What it does
Reports a collective behind a test of the rank, or behind an early exit for some ranks, where the other ranks call
none; and a collective within a group whose root is a rank of that group where torch.distributed expects a global one.

## Why it matters
A collective returns when all ranks of the group have called it. One rank that takes another path leaves the others
waiting until the watchdog ends the job. A root that is not in the group hangs too, or raises, but only for groups
that do not start at rank 0: never in a test with one group.

## Example
Bad:

```python
import torch.distributed as dist

class Group:
    def broadcast_from(self, data, root):
        box = [data]
        dist.broadcast_object_list(box, src=root, group=self.group)
        return box[0]
```

Good:

```python
import torch.distributed as dist

class Group:
    def broadcast_from(self, data, root):
        box = [data]
        dist.broadcast_object_list(box, src=dist.get_global_rank(self.group, root), group=self.group)
        return box[0]
```

## Do this instead
Call the collective on every rank and use its result on some. Translate a root with ``get_global_rank(group, root)``
or pass ``group_src``.

## Seen in
flashinfer #3418.

## Known limits
A rank of one group that guards a collective of another is right and is not reported; the groups are told apart by
their names. A root that is passed in may be global already: such a finding is "possible".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import arguments
from deltaproof.audit.flow.guards import Guard, guards
from deltaproof.audit.flow.ranks import is_collective, is_rooted, rank_names
from deltaproof.audit.flow.trace import called_name, names_in, origins, resolved
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_LOCAL_ROOT = re.compile(r"(root|root_rank|local_root|local_rank|group_rank|rank_in_group|local_src|tp_rank)$")
_KINDS = re.compile(r"(tp|pp|dp|ep|cp|sp|attn_tp|moe_ep|cfg|ulysses|ring|world|node)")
_ORDERS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_SETS = (*_ORDERS, ast.In, ast.NotIn)


class RankDependentCollective(Rule):
    """See the module's docstring."""

    code = "HZ502"
    name = "rank-dependent-collective"
    stable = False
    triggers = ("broadcast", "barrier", "all_reduce", "all_gather", "bcast", "scatter", "gather_object")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield collectives that some ranks pass by, and roots that are no global ranks."""
        for function in module.functions:
            for call in function.calls:
                if not is_collective(function, call):
                    continue
                if is_rooted(function, call):
                    yield from self._root(function, call)
                yield from self._guarded(function, call)

    def _root(self, function: Function, call: ast.Call) -> Iterator[Seen]:
        given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
        root = given.get("src", given.get("dst"))
        group = given.get("group")
        if root is None or group is None or (isinstance(group, ast.Constant) and group.value is None):
            return
        made = origins(function, root)
        if made.calls_any("get_global_rank", "get_process_group_ranks"):
            return
        name = root.id if isinstance(root, ast.Name) else root.attr if isinstance(root, ast.Attribute) else ""
        if not _LOCAL_ROOT.match(name) or _is_world(group):
            return
        yield Hit(
            function.module,
            call,
            function,
            f"{name} is passed as a global rank to {called_name(function, call)} within "
            f"{ast.unparse(group)}; where it counts within the group, the ranks wait for a sender outside it.",
            "likely" if "root" in name else "possible",
            f"Translate it: get_global_rank({ast.unparse(group)}, {name}), or pass group_src.",
        )

    def _guarded(self, function: Function, call: ast.Call) -> Iterator[Seen]:
        for guard in guards(function, call):
            names = _tested_ranks(function, guard.test)
            if not names or guard.kind == "assert" or not _same_group(names, function, call):
                continue
            other = _other_side(function, guard, call)
            if other is not None:
                yield Drop(function.module, call, function, f"the other ranks call a collective at line {other.lineno}")
                return
            yield Hit(
                function.module,
                call,
                function,
                f"{called_name(function, call)} runs only on some ranks, by the test of {sorted(names)[0]} "
                f"at line {guard.node.lineno}; the others never call it.",  # type: ignore[attr-defined]
                "likely",
                "Call it on every rank, and use the result where it is needed.",
                [Quote(function.module, guard.node, "the ranks part here")],
            )
            return


def _is_world(group: ast.expr) -> bool:
    text = ast.unparse(group).lower()
    return "world" in text


def _tested_ranks(function: Function, test: ast.expr, *, sets: bool = False) -> set[str]:
    """Return the ranks that a condition compares with a number or with a root; with ``sets`` also with several."""
    test = resolved(function, test)
    parts = test.values if isinstance(test, ast.BoolOp) else [test]
    found: set[str] = set()
    for part in parts:
        if isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.Not):
            part = part.operand
        if isinstance(part, ast.Compare) and isinstance(part.ops[0], _SETS if sets else _ORDERS):
            sides = [rank_names(function, side, follow=False) for side in (part.left, part.comparators[0])]
            calls = [
                called_name(function, node).rpartition(".")[2].removeprefix("get_")
                for node in ast.walk(part)
                if isinstance(node, ast.Call)
            ]
            end = part.comparators[0]
            if all(sides) or (isinstance(end, ast.Constant) and end.value in (None, -1)):
                continue
            found |= sides[0] | sides[1] | {name for name in calls if name in ("rank", "local_rank")}
    return found


def _same_group(ranks: set[str], function: Function, call: ast.Call) -> bool:
    """Return whether the tested rank may be one of the collective's group."""
    given = arguments(call, ())
    group = given.get("group")
    text = ast.unparse(group) if group is not None else called_name(function, call)
    of_group = set(_KINDS.findall(" ".join(names_in(group)) + text if group is not None else text))
    of_rank = {kind for name in ranks for kind in _KINDS.findall(name)}
    if group is None and not of_group:
        return True
    return of_group == of_rank


def _other_side(function: Function, guard: Guard, call: ast.Call) -> ast.Call | None:
    """Return a collective of the ranks that do not come here: in the other arm, or behind another test."""
    if isinstance(guard.node, ast.If):
        for statement in guard.node.orelse if guard.holds else guard.node.body:
            for part in ast.walk(statement):
                if isinstance(part, ast.Call) and is_collective(function, part):
                    return part
    name = called_name(function, call)
    for other in function.calls:
        if other is call or called_name(function, other) != name:
            continue
        for apart in guards(function, other):
            if apart.node is not guard.node and _tested_ranks(function, apart.test, sets=True):
                return other
    return None


RULE = RankDependentCollective()
