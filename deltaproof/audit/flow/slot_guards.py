"""What a kernel does about slot indices that may be padding: clamps and guards."""

from __future__ import annotations

import ast
import re
from functools import cached_property
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import accesses
from deltaproof.audit.flow.definitions import leaves
from deltaproof.audit.flow.guards import Guard, guards
from deltaproof.audit.flow.slots import Use, tainted_names, touches, walk_values
from deltaproof.audit.flow.trace import MOST, called_name

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_CLAMPS = ("maximum", "max", "clamp", "relu")
_CHOICES = ("where", "if_then_else", "select")
_LENGTHS = re.compile(r"cu_?seq|seq_?lens|indptr|start_loc")
_LENGTH = re.compile(r"len|num_(chunk|block|token)")
_ROW_MASK = re.compile(r"(^|_)(mask|valid|active|enabled?)(_|$)")


def from_lengths(function: Function, expr: ast.AST) -> bool:
    """Return whether a value comes from the row boundaries of a ragged batch, whatever path was taken.

    A row that pads such a batch has no tokens, so a test of its length skips it. Where the length may also be a
    parameter (a dense batch), padded rows have tokens.
    """
    return _from_lengths(function, expr, set())


def _from_lengths(function: Function, expr: ast.AST, seen: set[int]) -> bool:
    if id(expr) in seen or len(seen) > MOST:
        return False
    seen.add(id(expr))
    if isinstance(expr, ast.Name):
        if expr.id in function.param_names and _LENGTHS.search(expr.id.lower()):
            return True
        reached = function.flow.reaching(expr.id, expr) if expr in function.parents else []
        values = [each.value for each in reached]
        return bool(values) and all(each is not None and _from_lengths(function, each, seen) for each in values)
    if isinstance(expr, ast.Subscript) and isinstance(expr.value, ast.Name):
        return expr.value.id in function.param_names and _LENGTHS.search(expr.value.id.lower()) is not None
    if isinstance(expr, ast.Attribute) and not _LENGTH.search(expr.attr):
        return False
    if isinstance(expr, ast.Compare) and isinstance(expr.ops[0], (ast.Is, ast.IsNot)):
        return False
    if isinstance(expr, ast.Call) and called_name(function, expr).endswith(".load"):
        names = {part.id for part in ast.walk(expr) if isinstance(part, ast.Name)}
        return any(_LENGTHS.search(name.lower()) for name in names & function.param_names)
    return any(_from_lengths(function, part, seen) for part in ast.iter_child_nodes(expr))


def selects_row(function: Function, test: ast.AST) -> bool:
    """Return whether a condition is one number read from a mask over rows, a parameter: the caller chose the row."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test = test.operand
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.comparators[0], ast.Constant):
        test = test.left
    value = function.flow.value(test) if isinstance(test, ast.Name) and test in function.parents else test
    if isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name):
        return value.value.id in function.param_names and _ROW_MASK.search(value.value.id.lower()) is not None
    if not isinstance(value, ast.Call) or function.kind not in ("triton", "gluon"):
        return False
    return any(
        access.call is value and access.base in function.param_names and _ROW_MASK.search(access.base.lower())
        for access in accesses(function)
    )


def _constant(node: ast.AST) -> bool:
    """Whether it is a number, also inside a cast."""
    if isinstance(node, ast.Call) and len(node.args) == 1:
        node = node.args[0]
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and node.value >= 0


class SlotGuards:
    """The slot indices of one kernel: where they are clamped, and what skips their uses."""

    def __init__(self, function: Function, reads: list[ast.expr]) -> None:
        self.function = function
        self.reads = reads
        self.clamps: dict[ast.AST, ast.AST] = {}
        names = tainted_names(function, reads)
        for node in function.nodes:
            tested = node.test if isinstance(node, (ast.If, ast.IfExp)) else node
            if isinstance(node, (ast.If, ast.IfExp, ast.Call)) and touches(tested, reads, names):
                self._clamp(node)
        self.exits = [
            node
            for node in function.nodes
            if isinstance(node, ast.If)
            and touches(node.test, reads, names)
            and (leaves(node.body) or (node.orelse and leaves(node.orelse)))
        ]

    def holds(self, expr: ast.AST) -> bool:
        """Whether an expression's value comes from a slot index."""
        return any(node in self.reads for node in walk_values(self.function, expr, self.reads))

    def _clamp(self, node: ast.AST) -> None:
        if isinstance(node, ast.If) and not leaves(node.body):
            for statement in node.body:
                target = statement.targets[0] if isinstance(statement, ast.Assign) else None
                if isinstance(target, ast.Name) and _constant(statement.value):  # type: ignore[attr-defined]
                    before = self.function.flow.before(target.id, node)
                    held = any(each.value is not None and self.holds(each.value) for each in before)
                    if held and self._compares(node.test):
                        self.clamps[statement.value] = node  # type: ignore[attr-defined]
        elif isinstance(node, ast.IfExp):
            if (_constant(node.body) or _constant(node.orelse)) and self._compares(node.test):
                self.clamps[node] = node
        elif isinstance(node, ast.Call):
            name = called_name(self.function, node).rpartition(".")[2]
            clamp = name in _CLAMPS and len(node.args) >= 2 and any(_constant(each) for each in node.args)
            choice = name in _CHOICES and len(node.args) == 3 and any(_constant(each) for each in node.args[1:])
            chosen = choice and self._compares(node.args[0])
            if (clamp or chosen) and any(self.holds(each) for each in node.args[1 if choice else 0 :]):
                self.clamps[node] = node

    def _compares(self, expr: ast.AST) -> bool:
        """Whether a condition compares a slot index."""
        walked = walk_values(self.function, expr, self.reads)
        return any(isinstance(node, ast.Compare) and self.holds(node) for node in walked)

    def tests(self, expr: ast.AST) -> bool:
        """Whether a condition compares a slot index as it was read."""
        for node in walk_values(self.function, expr, self.reads):
            if isinstance(node, ast.Compare):
                walked = list(walk_values(self.function, node, self.reads))
                if any(each in self.reads for each in walked) and not any(each in self.clamps for each in walked):
                    return True
        return False

    def _flagged(self, expr: ast.AST) -> bool:
        """Whether a condition names a flag that is set below a test of a slot index, also through ``and``."""
        waiting: list[ast.AST] = [expr]
        seen: set[int] = set()
        while waiting and len(seen) < MOST:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
                waiting += node.values
                continue
            if not isinstance(node, ast.Name):
                if node is expr:
                    waiting += [each for each in ast.walk(expr) if isinstance(each, ast.Name)]
                continue
            if node not in self.function.parents or self.holds(node):
                continue
            for each in self.function.flow.reaching(node.id, node):
                if each.kind != "assign" or each.value is None or each.value in self.clamps:
                    continue
                around = guards(self.function, each.node)
                if any(guard.kind == "if" and guard.holds and self.tests(guard.test) for guard in around):
                    return True
                if isinstance(each.value, (ast.Name, ast.BoolOp)):
                    waiting.append(each.value)
        return False

    def guard(self, use: Use) -> ast.AST | None:
        """Return what skips a use where a slot index is padding."""
        if use.mask is not None and self.tests(use.mask):
            return use.mask
        found = [self._around(node) for node in (use.node, *use.touches)]
        return found[0] or (None if None in found[1:] else found[1])

    def _around(self, node: ast.AST) -> ast.AST | None:
        for guard in guards(self.function, node):
            if guard.kind != "while" and (self.tests(guard.test) or self._flagged(guard.test)):
                return guard.node
            if guard.kind in ("if", "early exit") and (selects_row(self.function, guard.test) or self._nonempty(guard)):
                return guard.node
            if guard.kind == "if" and not guard.holds and isinstance(guard.node, ast.If):
                other = next((each for each in guard.node.body if isinstance(each, ast.If)), None)
                if other is not None and self.tests(other.test):
                    return guard.node  # the caller chose that there is no padding
        line = getattr(node, "lineno", 0)
        found = next((each for each in self.exits if each.lineno < line and self.tests(each.test)), None)
        return found or self.called

    def _nonempty(self, guard: Guard) -> bool:
        return from_lengths(self.function, guard.test)

    @cached_property
    def called(self) -> ast.AST | None:
        """What skips rows without tokens wherever the class itself calls this function."""
        calls = []
        for other in self.function.module.functions:
            if self.function.owner is None or other.owner is not self.function.owner:
                continue
            for call in other.calls:
                if isinstance(call.func, ast.Attribute) and call.func.attr == self.function.name:
                    around = [each for each in guards(other, call) if from_lengths(other, each.test)]
                    calls.append(around[0].node if around else None)
        return calls[0] if calls and None not in calls else None
