"""A state test starts from a zero state or from none.

## What it does
Looks at tests that name a state's layout or an initial state and reports those in which every call of the operator
starts from no state, or from zeros.

## Why it matters
A zero state is the same in every layout, at every address and after every decay, so the load path is not tested.

## Example
Bad:

```python
def test_state_v_first():
    o0, ht0 = operator(q, k, v, state_v_first=False, output_final_state=True)
    o1, ht1 = operator(q, k, v, state_v_first=True, output_final_state=True)
    assert_close(ht0, ht1.transpose(-1, -2))
```

Good:

```python
def test_state_v_first():
    h0 = torch.randn(2, 3, 64, 32)
    o0, ht0 = operator(q, k, v, initial_state=h0, state_v_first=False, output_final_state=True)
    o1, ht1 = operator(q, k, v, initial_state=h0.transpose(-1, -2), state_v_first=True, output_final_state=True)
    assert_close(ht0, ht1.transpose(-1, -2))
```

## Do this instead
Start from a random, asymmetric state, and compare the final state as well as the output.

## Seen in
flash-linear-attention #776 (the layout tests), and the later gdn2 test.

## Known limits
States that are handed in positionally or by ``**kwargs`` are not recognised; such calls are left out. Tests
that compare no values, such as those of an error, are not judged.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.cases import FINAL, is_test, layout_words, made_tensors
from deltaproof.audit.flow.trace import names_in
from deltaproof.audit.rule import Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_GIVEN = re.compile(
    r"^(initial_states?|init_states?|h0|s0|h0_source|ssm_states?|recurrent_states?|state|states|cache)$"
)
_COMPARED = re.compile(r"close|equal|compare|diff", re.IGNORECASE)
_ABOUT = re.compile(r"initial_state|init_state|h0|state_carry|state_pass")


class ZeroStateTest(Rule):
    """HZ802."""

    code = "HZ802"
    name = "zero-state-test"
    triggers = ("def test",)
    tests = True

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield tests of states that start from nothing."""
        if not module.is_test:
            return
        for function in module.functions:
            if is_test(function) and (layout_words(function) or _ABOUT.search(function.name)):
                yield from _test(function)


def _test(function: Function) -> Iterator[Seen]:
    zeros = {name: node for name, node, call, _ in made_tensors(function) if ast.unparse(call.func).endswith("zeros")}
    written = {
        node.value.id
        for node in function.nodes
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name)
    } | {
        name
        for node in function.calls
        if isinstance(node.func, ast.Attribute) and node.func.attr.endswith("_")
        for name in names_in(node.func.value)
    }
    if not any(_COMPARED.search(ast.unparse(call.func)) for call in function.calls):
        return
    calls = [call for call in function.calls if any(word.arg and FINAL.search(word.arg) for word in call.keywords)]
    if not calls:
        calls = [call for call in function.calls if any(_GIVEN.match(word.arg or "") for word in call.keywords)]
    seen: list[tuple[ast.Call, str, ast.AST]] = []
    for call in calls:
        if any(word.arg is None for word in call.keywords):
            return
        given = next((word.value for word in call.keywords if _GIVEN.match(word.arg or "")), None)
        if given is None:
            seen.append((call, "no state", call))
        elif isinstance(given, ast.Constant) and given.value is None:
            seen.append((call, "no state", given))
        elif isinstance(given, ast.Name) and given.id in zeros and given.id not in written:
            seen.append((call, "zeros", zeros[given.id]))
        elif isinstance(given, ast.Call) and ast.unparse(given.func).endswith(("zeros", "zeros_like")):
            seen.append((call, "zeros", given))
        else:
            return
    if not seen:
        return
    call, what, node = seen[0]
    yield Hit(
        function.module,
        call,
        function,
        f"every call in this test of a state starts from {what}: how a state is read is not tested.",
        "likely",
        "Start from a random, asymmetric state.",
        (Quote(function.module, node, f"starts from {what}"),),
    )


RULE = ZeroStateTest()
