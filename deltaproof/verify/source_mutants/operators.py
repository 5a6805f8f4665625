"""The slips: each operator finds its places in one kernel and says what the text there becomes.

An operator is named after what it does. ``hazard`` is the hazard it mirrors, where the catalogue has one.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deltaproof.verify.source_mutants.source import ACCESSES, Edit, Kernel, Source, is_language_call, keyword

Places = Callable[[Source, Kernel], Iterator[Edit]]


@dataclass(frozen=True)
class Operator:
    """One kind of slip.

    Attributes:
        name: what it does.
        what: the same in a sentence.
        hazard: name of the hazard it mirrors, or None.
        places: yields its edits of one kernel, in any order.
    """

    name: str
    what: str
    hazard: str | None
    places: Places


def _walk(kernel: Kernel) -> Iterator[ast.AST]:
    """Walk the body of a kernel, without its signature and docstring."""
    for statement in kernel.node.body:
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            yield from ast.walk(statement)


def _atom(source: Source, node: ast.expr) -> str:
    """Return a node's text as an operand: in parentheses unless it binds by itself."""
    text = source.segment(node)
    simple = (ast.Name, ast.Call, ast.Subscript, ast.Attribute, ast.Constant)
    return text if isinstance(node, simple) else f"({text})"


def _chain(source: Source, kernel: Kernel, operators: tuple[type, ...]) -> Iterator[tuple[Edit, ast.expr, ast.BinOp]]:
    """Yield, for every operand of every chain of these operators, the edit that drops it, and where it stood."""
    for node in _walk(kernel):
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, operators):
            continue
        yield source.replace(node, _atom(source, node.left)), node.right, node
        if not (isinstance(node.left, ast.BinOp) and isinstance(node.left.op, operators)):
            sign = "-" if isinstance(node.op, ast.Sub) else ""
            yield source.replace(node, sign + _atom(source, node.right)), node.left, node


def _offset_nodes(kernel: Kernel) -> set[int]:
    """Return the ids of the nodes that addresses, masks and loop bounds are computed in."""
    roots: list[ast.AST] = []
    for node in _walk(kernel):
        if is_language_call(node, *ACCESSES):
            assert isinstance(node, ast.Call)
            mask = keyword(node, "mask")
            roots += [*node.args[:1], *([mask] if mask is not None else [])]
        elif isinstance(node, ast.For):
            roots.append(node.iter)
        elif isinstance(node, ast.If):
            roots.append(node.test)
        elif isinstance(node, ast.Assign):
            names = {item.id for target in node.targets for item in ast.walk(target) if isinstance(item, ast.Name)}
            roots += [node.value] if names & kernel.offsets else []
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)) and isinstance(node.target, ast.Name):
            roots += [node.value] if node.target.id in kernel.offsets and node.value is not None else []
    return {id(item) for root in roots for item in ast.walk(root)}


def _is_number(node: ast.expr) -> bool:
    node = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float))


def _drop_mask_term(source: Source, kernel: Kernel) -> Iterator[Edit]:
    for edit, _, node in _chain(source, kernel, (ast.BitAnd,)):
        if not (_is_number(node.left) or _is_number(node.right)):
            yield edit


def _without(source: Source, call: ast.Call, *dropped: str) -> str:
    kept = [source.segment(item) for item in call.args]
    kept += [f"{item.arg}={source.segment(item.value)}" for item in call.keywords if item.arg not in dropped]
    return f"{source.segment(call.func)}({', '.join(kept)})"


def _drop_mask(access: str) -> Places:
    def places(source: Source, kernel: Kernel) -> Iterator[Edit]:
        for node in _walk(kernel):
            if is_language_call(node, access):
                assert isinstance(node, ast.Call)
                if keyword(node, "mask") is not None:
                    yield source.replace(node, _without(source, node, "mask", "other"))

    return places


def _swap_heads(source: Source, kernel: Kernel) -> Iterator[Edit]:
    yield from _swap(source, kernel, {"H": "HV", "HV": "H"})


def _swap_sizes(source: Source, kernel: Kernel) -> Iterator[Edit]:
    yield from _swap(source, kernel, {"K": "V", "V": "K"})


def _swap_strides(source: Source, kernel: Kernel) -> Iterator[Edit]:
    pairs = {}
    for name in kernel.parameters:
        for end, other in (("_k", "_v"), ("_v", "_k")):
            if name.endswith(end) and name[:-2] + other in kernel.parameters:
                pairs[name] = name[:-2] + other
    yield from _swap(source, kernel, pairs)


def _swap(source: Source, kernel: Kernel, pairs: dict[str, str]) -> Iterator[Edit]:
    """Swap names for their partners where they count, scale or bound something."""
    for node in _walk(kernel):
        operands: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.FloorDiv, ast.Mod)):
            operands = [node.left, node.right]
        elif isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        for item in operands:
            if isinstance(item, ast.Name) and pairs.get(item.id) in kernel.parameters:
                yield source.replace(item, pairs[item.id])


def _drop_cast(kind: str) -> Places:
    def places(source: Source, kernel: Kernel) -> Iterator[Edit]:
        for node in _walk(kernel):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "to"
                and len(node.args) == 1
                and not node.keywords
                and source.segment(node.args[0]) == f"tl.{kind}"
            ):
                yield source.replace(node, source.segment(node.func.value))

    return places


def _narrow_zero(source: Source, kernel: Kernel) -> Iterator[Edit]:
    for node in _walk(kernel):
        if is_language_call(node, "zeros", "full"):
            assert isinstance(node, ast.Call)
            for item in node.args:
                if source.segment(item) == "tl.int64":
                    yield source.replace(item, "tl.int32")


BOUNDS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
}


def _shift_bound(source: Source, kernel: Kernel) -> Iterator[Edit]:
    for node in _walk(kernel):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in BOUNDS:
            _, after = BOUNDS[type(node.ops[0])]
            left, right = _side(source, node.left), _side(source, node.comparators[0])
            yield source.replace(node, f"{left} {after} {right}")


def _side(source: Source, node: ast.expr) -> str:
    """Return a side of a comparison: only what binds looser than a comparison needs parentheses."""
    text = source.segment(node)
    loose = (ast.Compare, ast.BoolOp, ast.IfExp, ast.Lambda)
    return f"({text})" if isinstance(node, loose) else text


def _short_range(source: Source, kernel: Kernel) -> Iterator[Edit]:
    for node in _walk(kernel):
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Call):
            called = node.iter
            stop = called.args[0] if len(called.args) == 1 else called.args[1]
            step = _atom(source, called.args[2]) if len(called.args) == 3 else "1"
            yield source.replace(stop, f"{source.segment(stop)} - {step}")


def _drop_factor(source: Source, kernel: Kernel) -> Iterator[Edit]:
    offsets = _offset_nodes(kernel)
    for edit, _, product in _chain(source, kernel, (ast.Mult,)):
        if id(product) not in offsets:
            yield edit
    for node in _walk(kernel):
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Mult):
            yield source.replace(node, "pass")


def _drop_stride(source: Source, kernel: Kernel) -> Iterator[Edit]:
    """Drop the second factor of an offset, index * stride."""
    offsets = _offset_nodes(kernel)
    for edit, dropped, node in _chain(source, kernel, (ast.Mult,)):
        if id(node) in offsets and dropped is node.right:
            yield edit


def _drop_offset(source: Source, kernel: Kernel) -> Iterator[Edit]:
    """Drop a base or a count; lanes of a block, x[:, None], are no slip that anybody makes."""
    offsets = _offset_nodes(kernel)
    for edit, dropped, node in _chain(source, kernel, (ast.Add, ast.Sub)):
        pointer = isinstance(dropped, ast.Name) and dropped.id in kernel.pointers
        lanes = any(isinstance(item, ast.Subscript) for item in ast.walk(dropped))
        negated = isinstance(node.op, ast.Sub) and dropped is node.left
        if id(node) in offsets and not (pointer or lanes or negated):
            yield edit
    yield from _updates(source, kernel, offset=True)


def _drop_addend(source: Source, kernel: Kernel) -> Iterator[Edit]:
    offsets = _offset_nodes(kernel)
    for edit, dropped, node in _chain(source, kernel, (ast.Add, ast.Sub)):
        pointer = isinstance(dropped, ast.Name) and dropped.id in kernel.pointers
        if id(node) not in offsets and not pointer:
            yield edit
    yield from _updates(source, kernel, offset=False)


def _updates(source: Source, kernel: Kernel, *, offset: bool) -> Iterator[Edit]:
    for node in _walk(kernel):
        if isinstance(node, ast.AugAssign) and isinstance(node.op, (ast.Add, ast.Sub)):
            name = node.target.id if isinstance(node.target, ast.Name) else ""
            if (name in kernel.offsets | kernel.pointers) is offset:
                yield source.replace(node, "pass")


def _drop_division(source: Source, kernel: Kernel) -> Iterator[Edit]:
    for node in _walk(kernel):
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.FloorDiv, ast.Mod)):
            yield source.replace(node, _atom(source, node.left))


def _drop_call(name: str) -> Places:
    def places(source: Source, kernel: Kernel) -> Iterator[Edit]:
        for node in _walk(kernel):
            if is_language_call(node, name):
                assert isinstance(node, ast.Call)
                yield source.replace(node, _atom(source, node.args[0]))

    return places


def _drop_clamp(*, offset: bool) -> Places:
    def places(source: Source, kernel: Kernel) -> Iterator[Edit]:
        offsets = _offset_nodes(kernel)
        for node in _walk(kernel):
            if is_language_call(node, "maximum", "minimum") and (id(node) in offsets) is offset:
                assert isinstance(node, ast.Call)
                for item in node.args:
                    named = isinstance(item, ast.Name) and item.id.isupper() and len(item.id) > 2
                    if not named and not _is_number(item):
                        yield source.replace(node, _atom(source, item))

    return places


def _drop_select(source: Source, kernel: Kernel) -> Iterator[Edit]:
    for node in _walk(kernel):
        if is_language_call(node, "where"):
            assert isinstance(node, ast.Call)
            yield source.replace(node, _atom(source, node.args[1]))


def _swap_difference(source: Source, kernel: Kernel) -> Iterator[Edit]:
    offsets = _offset_nodes(kernel)
    for node in _walk(kernel):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and id(node) not in offsets:
            yield source.replace(node, f"{_atom(source, node.right)} - {_atom(source, node.left)}")


def _drop_sign(source: Source, kernel: Kernel) -> Iterator[Edit]:
    for node in _walk(kernel):
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not _is_number(node.operand):
            yield source.replace(node, _atom(source, node.operand))


def _drop_statement(name: str) -> Places:
    def places(source: Source, kernel: Kernel) -> Iterator[Edit]:
        for node in _walk(kernel):
            if isinstance(node, ast.Expr) and is_language_call(node.value, name):
                yield source.replace(node, "pass")

    return places


def _drop_step(source: Source, kernel: Kernel) -> Iterator[Edit]:
    """Drop ``x = helper(x)``: a step that only some options ask for."""
    for node in _walk(kernel):
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args):
            continue
        target, first = node.targets[0], node.value.args[0]
        if isinstance(node.value.func, ast.Name) and source.segment(target) == source.segment(first):
            yield source.replace(node, "pass")


OPERATORS: tuple[Operator, ...] = (
    Operator("drop-mask-term", "leave one term out of a mask or condition", "unmasked-load", _drop_mask_term),
    Operator("drop-load-mask", "load without the mask", "unmasked-load", _drop_mask("load")),
    Operator("drop-store-mask", "store without the mask", "unmasked-store", _drop_mask("store")),
    Operator("swap-heads", "H where HV is meant, or HV for H", "missing-base-offset", _swap_heads),
    Operator("swap-sizes", "K where V is meant, or V for K", "unmasked-load", _swap_sizes),
    Operator("swap-strides", "a state's stride over K for that over V", "unchecked-state-layout", _swap_strides),
    Operator("drop-widening", "leave out a cast to 64 bits", "narrow-offset", _drop_cast("int64")),
    Operator("narrow-zero", "start a sum in 32 bits", "narrow-offset", _narrow_zero),
    Operator("shift-bound", "< for <=, <= for <, > for >=, >= for >", "unmasked-load", _shift_bound),
    Operator("short-range", "end a loop one step early", "unwritten-output", _short_range),
    Operator("drop-stride", "leave a factor out of an offset", "missing-base-offset", _drop_stride),
    Operator("drop-offset", "leave a term out of an offset or bound", "missing-base-offset", _drop_offset),
    Operator("drop-division", "leave out a division or remainder", "missing-base-offset", _drop_division),
    Operator("drop-factor", "leave out a factor: a scale, a decay, a strength", "unthreaded-option", _drop_factor),
    Operator("drop-addend", "leave a term out of a value", "wrong-gradient", _drop_addend),
    Operator("swap-difference", "b - a for a - b", "unbounded-exp", _swap_difference),
    Operator("drop-sign", "leave out a minus sign", None, _drop_sign),
    Operator("drop-transpose", "leave out a transposition", "unchecked-state-layout", _drop_call("trans")),
    Operator("drop-limit", "leave out a smallest or largest index", "unmasked-load", _drop_clamp(offset=True)),
    Operator("drop-clamp", "leave out a clamp of a value", "unbounded-exp", _drop_clamp(offset=False)),
    Operator("drop-select", "take the value where a condition chooses", "mask-by-multiply", _drop_select),
    Operator("drop-upcast", "leave out a cast to fp32", "low-precision-accumulate", _drop_cast("float32")),
    Operator("drop-store", "leave out a store", "unwritten-output", _drop_statement("store")),
    Operator("drop-step", "leave out an optional step, x = f(x)", "unthreaded-option", _drop_step),
    Operator("drop-barrier", "leave out a barrier", "racing-store", _drop_statement("debug_barrier")),
)
