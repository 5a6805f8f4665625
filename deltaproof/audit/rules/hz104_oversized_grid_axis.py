"""A grid axis y or z that grows with the input.

## What it does
Reads the grid of every kernel launch. It reports axis y or z (the second or third) where its size is the number of
packed sequences times the number of heads, the number of tokens, or the number of chunks of all packed sequences.

## Why it matters
CUDA allows 2**31 - 1 blocks on axis x, and 65535 on y and z. 4096 sequences times 16 heads are one too many: the
launch fails with "invalid argument", in production, on the batch that no test had.

## Example
Bad:

```python
def scale(x, cu_seqlens, H, V):
    N = len(cu_seqlens) - 1
    y = torch.empty_like(x)
    scale_kernel[(triton.cdiv(V, 64), N * H)](x, y, cu_seqlens, H, V)
    return y
```

Good:

```python
def scale(x, cu_seqlens, H, V):
    N = len(cu_seqlens) - 1
    y = torch.empty_like(x)
    scale_kernel[(triton.cdiv(V, 64) * N * H,)](x, y, cu_seqlens, H, V)
    return y
```

## Do this instead
Put what grows on axis x and take the index apart in the kernel: ``i_v, i_nh = pid % NV, pid // NV``.

## Seen in
flash-linear-attention #528, #904, #1077, #1097.

## Known limits
Sizes are known by name and by where they come from (``len(cu_seqlens) - 1``); a dense batch times heads is taken to
be small. A grid that is built elsewhere and passed in is not followed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.host_sizes import grid_axes
from deltaproof.audit.flow.row_counts import is_rows
from deltaproof.audit.flow.trace import called_name, names_in, resolved
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

LIMIT = 65535
_SEQUENCES = re.compile(r"(cu_?seq\w*|\w*indptr\w*|query_start_loc\w*|\w*start_loc)$")
_CHUNKS = re.compile(r"\w*(chunk|tile|block)_i(nd|dx)\w*$")
_NAMED_SEQUENCES = re.compile(r"(num_?seq(s|uences)|n_?seqs|num_reqs)$")
_HEADS = re.compile(r"(H|HQ|HV|HK|HKV|G|num_\w*heads\w*|n_?heads\w*)$")
_TOKENS = re.compile(r"(T|L|TQ|TK|seq_?len|seqlen_q|max_seq_?len\w*|num_tokens|total_tokens|n_tokens|total_len)$")
_NPU = re.compile(r"ascend|npu", re.IGNORECASE)
_SMALL = re.compile(r"(draft|spec|next_n|verify)")


class OversizedGridAxis(Rule):
    """See the module's docstring."""

    code = "HZ104"
    name = "oversized-grid-axis"
    stable = True
    triggers = ("](",)

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield one finding for each axis that a launch may not pass."""
        met: set[ast.AST] = set()
        for launch in module.launches:
            for axes in grid_axes(launch):
                for place, axis in enumerate(axes[1:3], start=1):
                    if axis in met:
                        continue
                    why = self._grows(launch.host, axis)
                    if why is None:
                        continue
                    met.add(axis)
                    yield self._seen(module, launch, axis, "xyz"[place], why)

    def _seen(self, module: Module, launch: Launch, axis: ast.expr, letter: str, why: str) -> Seen:
        line = _guarded(launch, axis)
        if line is not None:
            return Drop(module, axis, launch.host, f"its size is tested at line {line}")
        text, ends = ast.unparse(axis), f"lies on grid axis {letter}, which ends at {LIMIT} blocks."
        fix = "Put it on axis x, together with what is there, and take the index apart in the kernel."
        if _NPU.search(module.path):
            ends = f"lies in a grid that ends at {LIMIT} blocks altogether on this device."
            fix = "Launch as many programs as there are cores, and loop over the blocks in the kernel."
        quotes = [Quote(module, launch.call, "the launch")] if launch.call.lineno != axis.lineno else []
        for name in sorted(names_in(axis)):
            for made in launch.host.flow.definitions(name):
                if isinstance(made.node, ast.stmt) and made.value is not None and len(quotes) < 4:
                    quotes.append(Quote(module, made.node, f"{name} is made here"))
        return Hit(
            module,
            axis,
            launch.host,
            f"{text} is {why} and {ends}",
            "possible" if "chunks" in why else "likely",
            fix,
            quotes,
        )

    def _grows(self, host: Function, axis: ast.expr) -> str | None:
        """Return what an axis counts, where that passes the limit; None where it does not."""
        return next((why for each in _alternatives(host, axis) if (why := self._counts(host, each))), None)

    def _counts(self, host: Function, axis: ast.expr) -> str | None:
        parts = _factors(host, axis)
        if any(_HEADS.match(_text(part)) for part in parts) and any(
            _NAMED_SEQUENCES.match(_text(part)) or _is_count(host, part, _SEQUENCES) for part in parts
        ):
            return "the number of packed sequences times the number of heads"
        if any(_is_count(host, part, _CHUNKS) for part in parts):
            return "the number of chunks of all packed sequences"
        for part in parts:
            named = isinstance(part, ast.Name) and _TOKENS.match(part.id) and not _SMALL.search(part.id)
            if named and not all(isinstance(value, ast.Constant) for value in _values(host, part) or [part]):
                return "the number of tokens"
            if is_rows(host, part):
                return "the number of rows of a flattened tensor"
        return None


def _alternatives(host: Function, axis: ast.expr) -> list[ast.expr]:
    """Return an axis, or the arms of the conditional expression that it is."""
    made = _defined(host, axis)
    return [made.body, made.orelse] if isinstance(made, ast.IfExp) and _is_product(made) else [axis]


def _is_product(made: ast.IfExp) -> bool:
    return any(isinstance(arm, ast.BinOp) and isinstance(arm.op, ast.Mult) for arm in (made.body, made.orelse))


def _text(part: ast.expr) -> str:
    return part.id if isinstance(part, ast.Name) else part.attr if isinstance(part, ast.Attribute) else ""


def _factors(host: Function, expr: ast.expr) -> list[ast.expr]:
    """Return the factors of a product, names kept, products behind names taken apart."""
    if isinstance(expr, ast.BinOp) and isinstance(expr.op, ast.Mult):
        return _factors(host, expr.left) + _factors(host, expr.right)
    value = _defined(host, expr)
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mult):
        return [expr, *_factors(host, value)]
    return [expr]


def _defined(host: Function, expr: ast.expr) -> ast.expr | None:
    """Return what a name was last given, also where a nested function uses it."""
    if not isinstance(expr, ast.Name):
        return expr
    if expr in host.parents:
        return resolved(host, expr)
    made = [each for each in host.flow.definitions(expr.id) if each.value is not None]
    return made[-1].value if made else None


def _values(host: Function, expr: ast.expr) -> list[ast.expr]:
    """Return every value that a name gets in a function, the arms of conditional expressions apart."""
    if isinstance(expr, ast.Name):
        made = [each for each in host.flow.definitions(expr.id) if each.kind == "assign" and each.value is not None]
        return [arm for each in made if each.value is not None for arm in _values_of(each.value)]
    return _values_of(expr)


def _values_of(expr: ast.expr) -> list[ast.expr]:
    if isinstance(expr, ast.IfExp):
        return _values_of(expr.body) + _values_of(expr.orelse)
    return [expr]


def _is_count(host: Function, part: ast.expr, tables: re.Pattern[str]) -> bool:
    """Return whether a factor is the length of a table, less a constant."""
    for value in _values(host, part):
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Sub):
            value = value.left
        measured = value.args[:1] if isinstance(value, ast.Call) and called_name(host, value) == "len" else []
        if any(tables.match(name) for each in measured for name in names_in(each)):
            return True
        shape = value.value if isinstance(value, ast.Subscript) else None
        if isinstance(shape, ast.Attribute) and shape.attr == "shape" and tables.match(_text(shape.value)):
            return True
        if (
            isinstance(value, ast.Call)
            and isinstance(value.func, ast.Attribute)
            and value.func.attr in ("numel", "size")
            and tables.match(_text(value.func.value))
        ):
            return True
    return False


def _guarded(launch: Launch, axis: ast.expr) -> int | None:
    """Return the line of a test that keeps the axis below the limit, also where a caller made it and passes a flag."""
    host, names = launch.host, names_in(axis)
    for guard in guards(host, launch.call):
        tests = _values(host, guard.test)
        if isinstance(guard.test, ast.Name) and guard.test.id in host.param_names:
            flag = guard.test.id
            tests += [value for other in host.module.functions for value in _flag(other, flag)]
        for test in tests:
            for node in ast.walk(test):
                if not isinstance(node, ast.Compare) or not names & names_in(node):
                    continue
                numbers = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                if any(isinstance(number, int) and 1 < number <= LIMIT + 1 for number in numbers):
                    return getattr(guard.node, "lineno", launch.call.lineno)
    return None


def _flag(function: Function, name: str) -> list[ast.expr]:
    return [each.value for each in function.flow.definitions(name) if each.kind == "assign" and each.value is not None]


RULE = OversizedGridAxis()
