"""A layout test uses K = V, so it cannot see a transposition of shapes.

## What it does
Looks at tests that name a state's layout (`state_v_first`, `layout`, ...) and reports those whose states are square in
every case: one size name twice, or two names with the same number. It also reports fixtures that give the size of the
state and another dimension one and the same number.

## Why it matters
Every mix-up of K and V strides or tiles gives legal addresses in a square matrix.

## Example
Bad:

```python
def test_state_v_first():
    B, H, D = 2, 3, 64
    h0 = torch.randn(B, H, D, D)
    o, ht = operator(q, k, v, initial_state=h0.transpose(-1, -2), state_v_first=True)
    assert_close(o, reference(q, k, v, h0))
```

Good:

```python
def test_state_v_first():
    B, H, K, V = 2, 3, 64, 32
    h0 = torch.randn(B, H, K, V)
    o, ht = operator(q, k, v, initial_state=h0.transpose(-1, -2), state_v_first=True)
    assert_close(o, reference(q, k, v, h0))
```

## Do this instead
Parametrise with K != V in both directions; where K = V must be tested, use an asymmetric state and compare values.

## Seen in
flash-linear-attention #776 (the layout tests of GDN and KDA); flashinfer #3494.

## Known limits
Sizes that come from helper functions or from a configuration are not known.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.cases import STATE, is_test, layout_words, literal, made_tensors, sizes
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_DIMENSION = re.compile(r"^(head_?dim|d_?state|state_?(dim|size)|chunk_?(size|len)|head_size|dim_?[kv]|[kv]_dim|[KV])$")
_OF_STATE = re.compile(r"^(d_?state|state_?(dim|size)|dim_?k|k_dim|K)$")
FIX = "Give K and V different sizes in at least one case, and swap them in another."


class SquareStateTest(Rule):
    """HZ801."""

    code = "HZ801"
    name = "square-state-test"
    stable = True
    triggers = ("def test",)
    tests = True

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield tests of a layout that only know square states."""
        if not module.is_test:
            return
        for function in module.functions:
            if is_test(function):
                yield from _test(function)
        yield from _fixtures(module)


def _test(function: Function) -> Iterator[Seen]:
    words = layout_words(function)
    if not words:
        return
    given = sizes(function)
    for name, node, _, shape in made_tensors(function):
        if not STATE.search(name) or len(shape) < 2:
            continue
        rows, columns = (ast.unparse(each) for each in shape[-2:])
        if rows == columns:
            why = f"`{rows}` twice"
        elif rows in given and columns in given and len(given[rows]) == len(given[columns]):
            if any(a != b for a, b in zip(given[rows], given[columns], strict=True)):
                yield Drop(function.module, node, function, f"{rows} and {columns} differ in a case")
                return
            why = f"`{rows}` = `{columns}` in every case"
        else:
            continue
        yield Hit(
            function.module,
            node,
            function,
            f"the state `{name}` of a layout test is square ({why}): swapped strides or tiles pass.",
            "proven",
            FIX,
        )
        return
    pairs = [("K", "V"), ("K", "VD"), ("head_k_dim", "head_v_dim"), ("DK", "DV"), ("dk", "dv"), ("k_dim", "v_dim")]
    for first, second in pairs:
        a, b = given.get(first), given.get(second)
        if a and b and len(a) == len(b) and a == b and all(isinstance(each, int) for each in a):
            yield Hit(
                function.module,
                function.node,
                function,
                f"a layout test runs with `{first}` = `{second}` only: swapped strides or tiles pass.",
                "likely",
                FIX,
            )
            return


def _fixtures(module: Module) -> Iterator[Seen]:
    """Yield fixtures for the size of a state that has only the number of another dimension."""
    single: dict[object, list[tuple[Function, object]]] = {}
    for function in module.functions:
        call = function.decorator("fixture")
        if call is None or not _DIMENSION.match(function.name):
            continue
        params = next((word.value for word in call.keywords if word.arg == "params"), None)
        if isinstance(params, (ast.List, ast.Tuple)) and len(params.elts) == 1:
            single.setdefault(function.owner, []).append((function, literal(params.elts[0])))
    for group in single.values():
        for function, value in group:
            if not _OF_STATE.match(function.name):
                continue
            other = next((each for each, size in group if each is not function and size == value), None)
            if other is not None:
                yield Hit(
                    module,
                    function.node,
                    function,
                    f"`{function.name}` is {value} only, as is `{other.name}`: a tile of the wrong one passes.",
                    "likely",
                    "Add a case in which they differ.",
                    (Quote(module, other.node, "the same number"),),
                )


RULE = SquareStateTest()
