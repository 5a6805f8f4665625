"""Which definitions of a name reach a use.

Statements are followed as they are nested: backwards through the block of the use, then through the blocks around it.
Where a loop lies around the use, what its body defines further down reaches the use too.
"""

from __future__ import annotations

import ast
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

LOOPS = (ast.For, ast.AsyncFor, ast.While)
LEAVES = (ast.Return, ast.Raise, ast.Continue, ast.Break)
DEPTH = 40
MANY = 16
"""Up to so many definitions of one use are not counted."""
MOST_MANY = 100_000
"""So many definitions, summed over the uses in one function that many reach, are followed at most."""


class TooMany(Exception):
    """A function in which definitions and uses meet too often to be followed; its text says where."""


@dataclass(frozen=True)
class Definition:
    """One way in which a name gets its value.

    Attributes:
        name: the name.
        node: the statement; the ``arg`` of a parameter.
        value: the expression whose value it gets, as far as there is one: of an augmented assignment the whole
            ``name + x``, of an unpacked tuple the element; None for loop variables, ``with`` and parameters.
        kind: "assign", "augmented", "unpacked" (value is the whole right side), "loop" (value is what is iterated),
            "with", "param" or "other".
        index: which element of an unpacked right side.
    """

    name: str
    node: ast.AST
    value: ast.expr | None
    kind: str
    index: int | None = None


def _targets(target: ast.expr, value: ast.expr | None, node: ast.AST, kind: str) -> Iterator[Definition]:
    if isinstance(target, ast.Name):
        yield Definition(target.id, node, value, kind)
    elif isinstance(target, ast.Starred):
        yield from _targets(target.value, None, node, "other")
    elif isinstance(target, (ast.Tuple, ast.List)):
        same = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
        for place, inner in enumerate(target.elts):
            if same and kind == "assign":
                yield from _targets(inner, value.elts[place], node, kind)  # type: ignore[union-attr]
            elif isinstance(inner, ast.Name):
                yield Definition(inner.id, node, value, "unpacked" if kind == "assign" else kind, place)
            else:
                yield from _targets(inner, None, node, "other")


def defined_by(statement: ast.stmt) -> Iterator[Definition]:
    """Yield what a statement itself defines, not what the blocks inside it do."""
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            yield from _targets(target, statement.value, statement, "assign")
    elif isinstance(statement, ast.AnnAssign):
        if statement.value is not None:
            yield from _targets(statement.target, statement.value, statement, "assign")
    elif isinstance(statement, ast.AugAssign):
        if isinstance(statement.target, ast.Name):
            whole = statement.__dict__.get("_whole")
            if whole is None:  # one object, so that it can be told when it was met before
                before = ast.copy_location(ast.Name(statement.target.id, ast.Load()), statement.target)
                whole = ast.copy_location(ast.BinOp(before, statement.op, statement.value), statement)
                statement.__dict__["_whole"] = whole
            yield Definition(statement.target.id, statement, whole, "augmented")
    elif isinstance(statement, (ast.For, ast.AsyncFor)):
        yield from _targets(statement.target, statement.iter, statement, "loop")
    elif isinstance(statement, (ast.With, ast.AsyncWith)):
        for item in statement.items:
            if item.optional_vars is not None:
                yield from _targets(item.optional_vars, item.context_expr, statement, "with")
    elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield Definition(statement.name, statement, None, "other")
    elif isinstance(statement, (ast.Import, ast.ImportFrom)):
        for alias in statement.names:
            yield Definition(alias.asname or alias.name.partition(".")[0], statement, None, "other")


def blocks(statement: ast.stmt) -> list[list[ast.stmt]]:
    """Return the blocks inside a compound statement."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return []
    found = [getattr(statement, name) for name in ("body", "orelse", "finalbody") if getattr(statement, name, None)]
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        found.append(part.body)
    return found


def leaves(block: list[ast.stmt]) -> bool:
    """Return whether a block never reaches its end: it returns, raises, continues or breaks."""
    if not block:
        return False
    last = block[-1]
    if isinstance(last, LEAVES):
        return True
    return isinstance(last, ast.If) and bool(last.orelse) and leaves(last.body) and leaves(last.orelse)


class Definitions:
    """The definitions of one function."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self._defined: dict[ast.stmt, frozenset[str]] = {}
        self._placed: dict[int, dict[str, list[int]]] = {}
        self._within: dict[tuple[int, str], tuple[list[Definition], bool]] = {}
        self._reaching: dict[tuple[int, str], list[Definition]] = {}
        self.spent = 0
        """Definitions that reach the uses asked for so far, of the uses that many reach."""
        self._param = {
            argument.arg: Definition(argument.arg, argument, None, "param")
            for argument in ast.walk(function.node.args)
            if isinstance(argument, ast.arg)
        }
        self._place: dict[ast.AST, tuple[list[ast.stmt], int]] = {}
        self.augmented: dict[ast.expr, ast.AugAssign] = {}
        """Right side of an augmented assignment → the statement."""
        for node in (function.node, *function.nodes):
            if isinstance(node, ast.AugAssign):
                self.augmented[node.value] = node
            if not isinstance(node, ast.stmt):
                continue
            for block in [node.body] if node is function.node else blocks(node):  # type: ignore[attr-defined]
                for place, statement in enumerate(block):
                    self._place[statement] = (block, place)

    def _names(self, statement: ast.stmt) -> frozenset[str]:
        """Return the names that a statement or the blocks inside it define."""
        known = self._defined.get(statement)
        if known is None:
            names = {found.name for found in defined_by(statement)}
            for block in blocks(statement):
                for inner in block:
                    names |= self._names(inner)
            known = self._defined[statement] = frozenset(names)
        return known

    def _in(self, statement: ast.stmt, name: str) -> tuple[list[Definition], bool]:
        """Return a statement's definitions of a name that reach its end, and whether no earlier one does."""
        key = id(statement), name
        known = self._within.get(key)
        if known is None:
            known = self._within[key] = self._look(statement, name)
        return known

    def _look(self, statement: ast.stmt, name: str) -> tuple[list[Definition], bool]:
        own = [found for found in defined_by(statement) if found.name == name]
        inner = blocks(statement)
        if not inner:
            return own, bool(own)
        if isinstance(statement, ast.If):
            arms = [statement.body, statement.orelse]
        elif isinstance(statement, (ast.With, ast.AsyncWith)):
            found, kills = self._block(statement.body, name)
            return found or own, kills or bool(own)
        else:
            arms = inner
        found, kills = list(own), bool(own) and not isinstance(statement, LOOPS)
        ends = []
        for arm in arms:
            if leaves(arm) and not isinstance(statement, LOOPS):
                continue
            got, killed = self._block(arm, name)
            found += got
            ends.append(killed)
        if isinstance(statement, ast.If):
            kills = bool(ends) and all(ends)
        return found, kills

    def _places(self, block: list[ast.stmt], name: str) -> list[int]:
        """Return which statements of a block define a name, or hold a block that does; a block is read once."""
        known = self._placed.get(id(block))
        if known is None:
            known = self._placed[id(block)] = {}
            for place, statement in enumerate(block):
                for each in self._names(statement):
                    known.setdefault(each, []).append(place)
        return known.get(name, [])

    def _block(self, block: list[ast.stmt], name: str, upto: int | None = None) -> tuple[list[Definition], bool]:
        found: list[Definition] = []
        places = self._places(block, name)
        for at in range(len(places) if upto is None else bisect_left(places, upto), 0, -1):
            got, kills = self._in(block[places[at - 1]], name)
            found += got
            if kills:
                return found, True
        return found, False

    def reaching(self, name: str, at: ast.AST) -> list[Definition]:
        """Return the definitions of a name that may reach a node, nearest first; none for a global name."""
        return self.before(name, self.function.statement(at))

    def before(self, name: str, statement: ast.stmt) -> list[Definition]:
        """Return the definitions of a name that may reach a statement.

        Raises:
            TooMany: uses of the function that are reached by many definitions each add up to too much.
        """
        key = id(statement), name
        known = self._reaching.get(key)
        if known is None:
            known = self._before(name, statement)
            if len(known) > MANY:
                self.spent += len(known)
                if self.spent > MOST_MANY:
                    raise TooMany(
                        f"too many definitions reach each use of names such as `{name}` in `{self.function.name}` "
                        f"({self.function.module.path}, line {self.function.line})"
                    )
            self._reaching[key] = known
        return known

    def _before(self, name: str, statement: ast.stmt) -> list[Definition]:
        found: list[Definition] = []

        def add(more: list[Definition]) -> None:
            met = set(found) if more else ()
            found.extend([each for each in more if each not in met] if met else more)

        here: ast.AST = statement
        while here in self._place:
            block, place = self._place[here]  # type: ignore[index]
            got, kills = self._block(block, name, place)
            add(got)
            if kills:
                return found
            around = self.function.parents.get(here)
            while around is not None and around not in self._place and around is not self.function.node:
                around = self.function.parents.get(around)
            if around is None or around is self.function.node:
                break
            if isinstance(around, LOOPS):
                again, _ = self._block(around.body, name)
                add(again)
            own = [each for each in defined_by(around) if each.name == name]  # type: ignore[arg-type]
            if own:
                add(own)
                return found
            here = around
        if name in self._param:
            found.append(self._param[name])
        return found

    def value(self, name: ast.Name) -> ast.expr | None:
        """Return the one expression whose value a use of a name has; None where there are several or none."""
        reached = self.reaching(name.id, name)
        if len(reached) == 1 and reached[0].kind in ("assign", "augmented"):
            return reached[0].value
        return None

    def definitions(self, name: str) -> list[Definition]:
        """Return every definition of a name in the function, parameters first."""
        found = [self._param[name]] if name in self._param else []
        return found + self._by_name.get(name, [])

    @cached_property
    def _by_name(self) -> dict[str, list[Definition]]:
        found: dict[str, list[Definition]] = {}
        for node in self.function.nodes:
            if isinstance(node, ast.stmt):
                for each in defined_by(node):
                    found.setdefault(each.name, []).append(each)
        return found
