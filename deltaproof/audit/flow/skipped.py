"""Which rows of an output a Triton kernel leaves unwritten: early returns, other indices in masks, triangles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.guards import Guard, guards
from deltaproof.audit.flow.trace import addends, names_in, origins

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_NEGATED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
}


@dataclass(frozen=True)
class Skip:
    """A reason why rows of one parameter stay unwritten.

    Attributes:
        param: the kernel's parameter.
        node: the condition's statement in the kernel, or the store.
        test: the condition.
        store: one of the stores that are skipped.
    """

    param: str
    node: ast.AST
    test: ast.expr
    store: Access


def stores(kernel: Function) -> dict[str, list[Access]]:
    """Return the stores of a kernel by the parameter that they start from."""
    found: dict[str, list[Access]] = {}
    for access in accesses(kernel):
        if access.kind == "store":
            base = base_of(kernel, access)
            if base:
                found.setdefault(base, []).append(access)
    return found


def base_of(kernel: Function, access: Access) -> str:
    """Return the parameter that a pointer starts from, also where branches define it differently; else ""."""
    if access.base in kernel.param_names:
        return access.base
    pointers = kernel.param_names - kernel.constexprs
    waiting: list[tuple[ast.expr, int]] = [(term, 4) for term in access.addends]
    while waiting:
        term, left = waiting.pop(0)
        if not isinstance(term, ast.Name):
            continue
        for reached in kernel.flow.reaching(term.id, term) if term in kernel.parents else ():
            if reached.kind == "param" and term.id in pointers:
                return term.id
            if reached.value is not None and left and reached.kind in ("assign", "augmented"):
                for inner in addends(kernel, reached.value)[:1]:
                    waiting.append((inner, left - 1))
    return ""


def loads_behind(function: Function, expr: ast.AST) -> set[int]:
    """Return the identities of the load calls that an expression depends on."""
    return {id(call) for name, call in origins(function, expr).calls if name.rpartition(".")[2] == "load"}


def passes_on(kernel: Function, param: str) -> bool:
    """Return whether a kernel gives a pointer to a function of its own, which may store too."""
    for call in kernel.calls:
        name = kernel.called(call)
        if name.startswith(("tl.", "triton.", "gl.", "language.")):
            continue
        for each in [*call.args, *(word.value for word in call.keywords)]:
            if param in names_in(each):
                return True
    return False


def _number(expr: ast.expr) -> int | None:
    if isinstance(expr, ast.UnaryOp) and isinstance(expr.op, ast.USub):
        inner = _number(expr.operand)
        return None if inner is None else -inner
    if isinstance(expr, ast.Constant) and isinstance(expr.value, int) and not isinstance(expr.value, bool):
        return expr.value
    return None


def _tested(function: Function, test: ast.expr, skips_when: bool) -> Iterator[ast.expr]:
    """Yield the values for whose emptiness, negativity or padding mark a condition skips."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or if skips_when else ast.And):
        for part in test.values:
            yield from _tested(function, part, skips_when)
    elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from _tested(function, test.operand, not skips_when)
    elif isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, right, op = test.left, test.comparators[0], type(test.ops[0])
        if not skips_when:
            op = _NEGATED.get(op, op)
        number = _number(right)
        mark = isinstance(right, ast.Name) and any(part in right.id.upper() for part in ("PAD", "NULL", "SENTINEL"))
        if (
            (op is ast.Eq and (number in (0, -1) or mark))
            or (op is ast.Lt and number in (0, 1))
            or (op is ast.LtE and number in (0, -1))
        ) or (op in (ast.Eq, ast.LtE, ast.GtE) and number is None and {"bos", "eos"} <= names_in(test)):
            yield left


def _directions(found: list[Guard]) -> dict[int, tuple[Guard, bool]]:
    return {id(guard.node): (guard, guard.holds) for guard in found if guard.kind in ("if", "early exit")}


def by_condition(kernel: Function) -> Iterator[Skip]:
    """Yield the outputs that a kernel skips when a length or an index that it loads is empty, negative or padding.

    An output whose address depends on that very value has no row there, and is left out; so is one that any other
    path stores.
    """
    for param, writes in stores(kernel).items():
        around = [_directions(guards(kernel, access.call)) for access in writes]
        for key, (guard, holds) in around[0].items():
            if any(other.get(key, (guard, not holds))[1] is not holds for other in around):
                continue
            for tested in _tested(kernel, guard.test, not holds):
                behind = loads_behind(kernel, tested)
                if not behind:
                    continue
                free = [
                    each
                    for each in writes
                    if not behind & loads_behind(kernel, each.pointer) and not _scattered(kernel, each, guard)
                ]
                if free and not passes_on(kernel, param):
                    yield Skip(param, guard.node, guard.test, free[0])
                    break


def _scattered(kernel: Function, access: Access, guard: Guard) -> bool:
    """Return whether the address is looked up or counted, so that rows do not stand for what the condition tests."""
    depends = origins(kernel, access.pointer)
    for name, call in depends.calls:
        if (
            name.rpartition(".")[2] == "load"
            and call.args
            and not any(
                part in each.lower() for each in names_in(call.args[0]) for part in ("seq", "lens", "indptr", "chunk")
            )
        ):
            return True
    counted = {
        node.target.id
        for node in (ast.walk(guard.node) if guard.kind == "if" else ())
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)
    }
    return bool(counted & depends.names)


def by_mask(kernel: Function) -> Iterator[Skip]:
    """Yield the outputs whose stores are masked by an index that is shifted against the address by a loaded value."""
    for param, writes in stores(kernel).items():
        skips = []
        for access in writes:
            skip = _shifted(kernel, access)
            if skip is None:
                break
            skips.append(skip)
        else:
            if skips and not passes_on(kernel, param):
                yield Skip(param, writes[0].call, skips[0], writes[0])


def _shifted(kernel: Function, access: Access) -> ast.expr | None:
    address = loads_behind(kernel, access.pointer)
    for condition in access.conditions:
        if not isinstance(condition, ast.Compare):
            continue
        sides = [condition.left, *condition.comparators]
        for place, side in enumerate(sides):
            if any(loads_behind(kernel, other) for other in (*sides[:place], *sides[place + 1 :])):
                continue  # a length that is loaded too: the rows of one sequence, counted from elsewhere
            extra = loads_behind(kernel, side) - address
            if extra and _counts_rows(kernel, side):
                return condition
    return None


def _counts_rows(kernel: Function, side: ast.expr) -> bool:
    """Return whether a range runs through an index itself, not only through the address of what it loads."""
    waiting: list[ast.AST] = [side]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or (isinstance(node, ast.Call) and kernel.called(node).endswith(".load")):
            continue
        seen.add(id(node))
        if isinstance(node, ast.Call) and kernel.called(node).endswith("arange"):
            return True
        if isinstance(node, ast.Name) and node in kernel.parents:
            waiting += [each.value for each in kernel.flow.reaching(node.id, node) if each.value is not None]
        else:
            waiting.extend(ast.iter_child_nodes(node))
    return False


def by_triangle(kernel: Function) -> Iterator[Skip]:
    """Yield the outputs of which only tiles on one side of the diagonal are stored.

    The column tile runs in a loop up to (or from) the row tile, and both are in the address.
    """
    for param, writes in stores(kernel).items():
        skip = None
        for access in writes:
            skip = _below(kernel, access)
            if skip is None:
                break
        if skip is not None and not passes_on(kernel, param):
            yield skip


def _below(kernel: Function, access: Access) -> Skip | None:
    block = access.block
    where = block.offsets if block is not None and block.offsets is not None else access.pointer
    behind = origins(kernel, where).names
    for around in kernel.ancestors(access.call):
        if not isinstance(around, ast.For) or not isinstance(around.target, ast.Name):
            continue
        if around.target.id not in behind or not isinstance(around.iter, ast.Call):
            continue
        arguments = around.iter.args
        bounds = arguments[:1] if len(arguments) == 1 else arguments[:2]
        for bound in bounds:
            terms = [term for term in addends(kernel, bound) if isinstance(term, ast.Name)]
            if any(term.id in behind and _is_tile(kernel, term, access.call) for term in terms):
                return Skip(access.base, around, around.iter, access)
    return None


def _is_tile(kernel: Function, name: ast.Name, at: ast.AST) -> bool:
    """Return whether a name numbers tiles: it runs in a loop around, or comes from the program's id."""
    for around in kernel.ancestors(at):
        if isinstance(around, ast.For) and isinstance(around.target, ast.Name) and around.target.id == name.id:
            return True
    return False


def by_own_reads(kernel: Function) -> Iterator[tuple[Access, Guard, ast.expr]]:
    """Yield loads of memory that the kernel stores too, where only the tile's first row is held against the bound.

    The guard compares the start of the tile with one bound, the mask compares its rows with another: in the tile that
    straddles the first bound the load reads rows which nobody has written yet.
    """
    written = set(stores(kernel))
    for access in accesses(kernel):
        if access.kind != "load" or access.base not in written or access.mask is None:
            continue
        for guard in guards(kernel, access.call):
            test = guard.test
            if guard.kind != "if" or not guard.holds or not isinstance(test, ast.Compare) or len(test.ops) != 1:
                continue
            if not isinstance(test.ops[0], (ast.Lt, ast.LtE)) or not isinstance(test.left, ast.Name):
                continue
            for condition in access.conditions:
                if (
                    isinstance(condition, ast.Compare)
                    and len(condition.ops) == 1
                    and ast.unparse(condition.comparators[0]) != ast.unparse(test.comparators[0])
                    and test.left.id in origins(kernel, condition.left).names
                    and origins(kernel, condition.left).calls_any("arange")
                ):
                    yield access, guard, condition
