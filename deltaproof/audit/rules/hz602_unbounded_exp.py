"""exp of a positive argument without a bound; or infinity minus infinity.

## What it does
Reports, in kernels: the exponential of the difference of two elements of one buffer where no condition orders the two
indices; the exponential of a negated cumulative gate that is multiplied; one whose argument is clamped, which avoids
the infinity and changes the result; ``log(1 + exp(x))`` without a select for large ``x``; and infinity minus infinity
in a running maximum that each lane keeps for itself from -inf on.

## Why it matters
Decays are products of factors below one, but ratios of them taken in the wrong direction, or split into two factors,
overflow. A clamp that avoids the infinity changes the result instead.

## Example
Bad:

```python
@cute.jit
def kernel(self, log_decay: cute.Tensor, out: cute.Tensor, coordinates: cute.Tensor):
    for i in range(64):
        s, t = coordinates[i]
        ratio = cute.math.exp2(log_decay[s] - log_decay[t])
        out[i] = out[i] * ratio
```

Good:

```python
@cute.jit
def kernel(self, log_decay: cute.Tensor, out: cute.Tensor, coordinates: cute.Tensor):
    for i in range(64):
        s, t = coordinates[i]
        if s >= t:
            ratio = cute.math.exp2(log_decay[s] - log_decay[t])
            out[i] = out[i] * ratio
        else:
            out[i] = 0.0
```

## Do this instead
Form differences of log gates whose sign is known, and exponentiate only the causal half. Shift by an anchor inside the
block rather than split the exponent.

## Seen in
flashinfer #3481; TileOPs #1465; the softplus of a state update in mamba; a softmax over long rows in FlagGems.

## Known limits
That a gate is a log of factors below one is read from names (`g`, `cum`, `decay`, `alpha`, `dA`). Tiles of all pairs
in Triton belong to mask-by-multiply. A running maximum of whole rows (attention) is left alone: whether a tile can be
masked from end to end is not followed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow import running_maximum, selects, softplus
from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.tiles import is_tile_kernel
from deltaproof.audit.flow.trace import names_in, resolved
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_GATE = re.compile(r"(^|_)(g|gc|gk|gv|gs|gate|gates|da|cg|decay|alpha)($|_)|cum|decay|log_?alpha", re.IGNORECASE)
_CLAMPS = ("min", "minimum", "clamp")
_MOST = 700.0


class UnboundedExp(Rule):
    """HZ602."""

    code = "HZ602"
    name = "unbounded-exp"
    triggers = ("triton", "tilelang", "cutlass")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield exponentials that overflow, or that a clamp falsifies."""
        if "exp" not in module.text:
            return
        tiles = "tilelang" in module.text
        for function in module.functions:
            if not function.is_kernel and not (tiles and is_tile_kernel(function)):
                continue
            yield from _softplus(function, project)
            yield from _nothing_yet(function)
            for call in function.calls:
                if selects.is_exp(function, call):
                    yield from _clamped(function, call)
                    yield from _pair(function, call)
                    yield from _negated(function, call)


def _softplus(function: Function, project: Project) -> Iterator[Seen]:
    for call, exponent in softplus.unbounded(function, project):
        yield Hit(
            function.module,
            call,
            function,
            f"`{ast.unparse(call)}` is infinite as soon as `exp({ast.unparse(exponent)})` is, from 89 on in float32, "
            f"where the true value is `{ast.unparse(exponent)}` itself.",
            "likely",
            "Select the argument itself where it is large, or use `max(x, 0) + log1p(exp(-abs(x)))`.",
        )


def _nothing_yet(function: Function) -> Iterator[Seen]:
    for call, name, start in running_maximum.nothing_yet(function):
        yield Hit(
            function.module,
            call,
            function,
            f"`{ast.unparse(call.args[0])}` is infinity minus infinity in a lane that has met only -inf or masked "
            f"elements: `{name}` is still -inf there, and the NaN stays in the sum.",
            "likely",
            f"Keep the sum as it is where `{name}` is -inf.",
            (Quote(function.module, start, "the running maximum of every lane starts at -inf"),),
        )


def _in_sigmoid(function: Function, call: ast.Call) -> bool:
    """Return whether an exponential is a part of ``1 + exp(x)`` or of a logarithm: no decay."""
    for around in function.ancestors(call):
        if isinstance(around, ast.stmt):
            break
        if isinstance(around, ast.BinOp) and isinstance(around.op, (ast.Add, ast.Sub)):
            return True
        if isinstance(around, ast.Call) and selects.last_name(function, around).startswith(("log", "div", "fdiv")):
            return True
    statement = function.statement(call)
    if isinstance(statement, ast.Assign) and statement.value is call and isinstance(statement.targets[0], ast.Name):
        name = statement.targets[0].id
        for node in function.nodes:
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
                sides = (node.left, node.right)
                named = any(isinstance(side, ast.Name) and side.id == name for side in sides)
                if named and any(isinstance(side, ast.Constant) for side in sides):
                    return True
    return False


def _bare(function: Function, expr: ast.expr) -> ast.expr:
    """Return what a cast of one value wraps."""
    for _ in range(4):
        expr = resolved(function, expr, 2)
        if not isinstance(expr, ast.Call) or len(expr.args) != 1 or expr.keywords:
            break
        if selects.last_name(function, expr) not in ("Float32", "float32", "cast", "float"):
            break
        expr = expr.args[0]
    return expr


def _clamped(function: Function, call: ast.Call) -> Iterator[Seen]:
    inner = resolved(function, call.args[0], 2)
    if not isinstance(inner, ast.Call) or selects.last_name(function, inner) not in _CLAMPS:
        return
    given = [*inner.args, *(word.value for word in inner.keywords)]
    limits = [_number(each) for each in given]
    negated = next((each for each in given if isinstance(each, ast.UnaryOp) and _number(each) is None), None)
    limit = max((each for each in limits if each is not None), default=None)
    if negated is None or limit is None or not 10 <= limit <= _MOST or _in_sigmoid(function, call):
        return
    yield Hit(
        function.module,
        call,
        function,
        f"`{ast.unparse(negated)}` is clamped at {limit:g} before exp: a decay that is stronger comes out wrong.",
        "likely",
        "Exponentiate the difference to an anchor inside the block, which needs no clamp.",
    )


def _number(expr: ast.expr) -> float | None:
    if isinstance(expr, ast.Call) and len(expr.args) == 1:
        expr = expr.args[0]
    if isinstance(expr, ast.Constant) and isinstance(expr.value, (int, float)) and not isinstance(expr.value, bool):
        return float(expr.value)
    return None


def _pair(function: Function, call: ast.Call) -> Iterator[Seen]:
    inner = resolved(function, call.args[0], 2)
    if not isinstance(inner, ast.BinOp) or not isinstance(inner.op, ast.Sub):
        return
    left, right = _bare(function, inner.left), _bare(function, inner.right)
    if not isinstance(left, ast.Subscript) or not isinstance(right, ast.Subscript):
        return
    if ast.unparse(left.value) != ast.unparse(right.value):
        return
    pair = _differing(left.slice, right.slice)
    if pair is None:
        return
    first, second = names_in(pair[0]), names_in(pair[1])
    if not first or not second or first == second:
        return
    for guard in guards(function, call):
        if _orders(function, guard.test, first, second):
            line = getattr(guard.node, "lineno", 0)
            yield Drop(function.module, call, function, f"the indices are ordered at line {line}")
            return
    later = selects.selected_later(function, call)
    for around in function.ancestors(call):
        if later is None and selects.zero_where(function, around):
            later = around
    if later is not None:
        yield Drop(function.module, call, function, f"selected at line {getattr(later, 'lineno', 0)}")
        return
    masked = _masked_by_caller(function, call)
    if masked is not None:
        yield Drop(function.module, call, function, f"the caller masks the result at line {masked}")
        return
    yield Hit(
        function.module,
        call,
        function,
        f"`{ast.unparse(inner)}` has either sign, as nothing orders `{ast.unparse(pair[0])}` and "
        f"`{ast.unparse(pair[1])}`; with a strong decay its exp is infinite.",
        "likely",
        "Exponentiate only the pairs in which the sign of the difference is known.",
        tuple(Quote(function.module, guard.test, "does not order them") for guard in guards(function, call)[:1]),
    )


def _masked_by_caller(function: Function, call: ast.Call) -> int | None:
    """Return the line in which a caller masks what this function scales in place, by a function that is named so."""
    statement = function.statement(call)
    target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
    if not isinstance(target, ast.Subscript) or not names_in(target.value) & function.param_names:
        return None
    for other in function.module.functions:
        uses = [each for each in other.calls if selects.last_name(other, each) == function.name]
        for each in other.calls if uses else ():
            if "mask" in selects.last_name(other, each) and each.lineno > uses[0].lineno:
                return each.lineno
    return None


def _differing(left: ast.expr, right: ast.expr) -> tuple[ast.expr, ast.expr] | None:
    """Return the one place in which two indices differ, both plain and neither a slice or a constant."""
    lefts = left.elts if isinstance(left, ast.Tuple) else [left]
    rights = right.elts if isinstance(right, ast.Tuple) else [right]
    if len(lefts) != len(rights):
        return None
    pairs = [(a, b) for a, b in zip(lefts, rights, strict=True) if ast.unparse(a) != ast.unparse(b)]
    if len(pairs) != 1 or any(not isinstance(each, ast.Name) for each in pairs[0]):
        return None
    return pairs[0]


def _orders(function: Function, test: ast.AST, first: set[str], second: set[str], depth: int = 5) -> bool:
    """Return whether a condition, through names, compares one index with the other."""
    for node in ast.walk(test):
        if isinstance(node, ast.Compare):
            names = names_in(node)
            if first & names and second & names and not isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
                return True
        if isinstance(node, ast.Name) and depth and node in function.parents:
            for each in function.flow.reaching(node.id, node):
                if each.value is not None and _orders(function, each.value, first, second, depth - 1):
                    return True
    return False


def _negated(function: Function, call: ast.Call) -> Iterator[Seen]:
    inner = call.args[0]
    if not isinstance(inner, ast.UnaryOp) or not isinstance(inner.op, ast.USub) or _in_sigmoid(function, call):
        return
    value = inner.operand
    while isinstance(value, ast.Subscript):
        value = value.value
    if not isinstance(value, ast.Name) or not _GATE.search(value.id.removeprefix("b_").removeprefix("s_")):
        return
    parent = function.parents.get(call)
    if not isinstance(parent, (ast.BinOp, ast.AugAssign)) or not isinstance(parent.op, ast.Mult):
        return
    if selects.selected_later(function, call) is not None:
        return
    yield Hit(
        function.module,
        call,
        function,
        f"`{ast.unparse(call)}` grows with the decay since the start of the chunk and overflows where it is strong.",
        "possible",
        "Exponentiate the difference to an anchor inside the block, whose sign is known.",
    )


RULE = UnboundedExp()
