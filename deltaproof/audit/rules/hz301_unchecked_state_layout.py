"""unchecked-state-layout

## What it does
Looks at entry points that take a state and a flag which chooses between its two layouts ([K, V] and [V, K]), and
reports those where nothing compares the state's last two sizes with what the flag says. It also reports a function that
checks which tensors a kernel supports, looks at the dtype of the others, and never at the state's.

## Why it matters
A state in the other layout has the same number of elements. With K == V it is silently transposed, and every later
token is wrong; otherwise it is read out of place.

## Example
Bad:

```python
def chunk_rule(q, k, v, initial_state=None, state_v_first=False, cu_seqlens=None):
    if initial_state is not None and initial_state.shape[0] != len(cu_seqlens) - 1:
        raise ValueError("one state a sequence")
    return Rule.apply(q, k, v, initial_state, state_v_first)
```

Good:

```python
def chunk_rule(q, k, v, initial_state=None, state_v_first=False, cu_seqlens=None):
    if initial_state is not None and initial_state.shape[0] != len(cu_seqlens) - 1:
        raise ValueError("one state a sequence")
    sizes = (v.shape[-1], k.shape[-1]) if state_v_first else (k.shape[-1], v.shape[-1])
    if initial_state is not None and tuple(initial_state.shape[-2:]) != sizes:
        raise ValueError(f"initial_state: expected {sizes} at the end, got {tuple(initial_state.shape)}")
    return Rule.apply(q, k, v, initial_state, state_v_first)
```

## Do this instead
Compare the whole shape with the layout the flag asks for, and the dtype and strides with what the kernel reads; raise
with both in the message.

## Seen in
Entry points of delta-rule operators that check at most the number of states.

## Known limits
A check in a helper that is handed the state is believed without a look into it. With K == V no check of shapes can tell
the layouts apart.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import names_in
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_FLAG = re.compile(r"^(state_v_first|state_k_first|transpose_state\w*|state_layout|\w*state_transposed|k_last|v_last)$")
_STATE = re.compile(r"^(initial_state\w*|init_state\w*|h0|s0|ssm_state|recurrent_state|state|states|initial_h)$")
_NO_STATE = re.compile(r"indices|index|idx|layout|source_ind")
_CHECKER = re.compile(r"check|valid|verify|assert")


class UncheckedStateLayout(Rule):
    """See the module's docstring."""

    code = "HZ301"
    name = "unchecked-state-layout"
    stable = True
    triggers = (
        "state_v_first",
        "state_k_first",
        "transpose_state",
        "state_layout",
        "_transposed",
        "initial_state",
        "k_last",
    )

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield entry points that believe the layout, and checks that leave the state out."""
        for function in module.functions:
            if function.is_kernel:
                continue
            states = [p.name for p in function.params if _STATE.match(p.name) and not _NO_STATE.search(p.name)]
            if not states:
                continue
            flag = next((param.name for param in function.params if _FLAG.match(param.name)), "")
            if flag:
                yield from self._layout(module, function, states[0], flag)
            yield from self._dtype(module, function, states)

    def _layout(self, module: Module, function: Function, state: str, flag: str) -> Iterator[Seen]:
        leading = _leading_check(function, state)
        applies = any(isinstance(call.func, ast.Attribute) and call.func.attr == "apply" for call in function.calls)
        told = ast.get_docstring(function.node) or ""
        entry = leading is not None or (applies and state in told)
        if function.name.startswith("_") or function.owner is not None or not entry:
            return
        checked = _checked(function, state)
        if checked is not None:
            yield Drop(module, checked, function, f"the shape of `{state}` is checked here")
            return
        yield Hit(
            module,
            leading or function.node,
            function,
            f"`{state}` is read in the layout that `{flag}` names, and nobody compares its last two sizes with it"
            + (": only how many states there are is checked." if leading else "."),
            "likely",
            f"Compare `{state}.shape` with the layout that `{flag}` asks for, and raise.",
            (Quote(module, function.node, f"takes `{state}` and `{flag}`"),),
        )

    def _dtype(self, module: Module, function: Function, states: list[str]) -> Iterator[Seen]:
        refusals = [node for node in function.nodes if isinstance(node, ast.If) and _refuses(node)]
        looked: set[str] = set()
        last: ast.AST | None = None
        for node in refusals:
            owners = _owners(node.test, "dtype")
            if len(owners & function.param_names) >= 1:
                last = node
            looked |= owners
        looked |= _looped(function)
        if last is None or len(looked & function.param_names) < 3 or len(refusals) < 4:
            return
        if any(_owners(node, "dtype") & set(states) for node in function.nodes) or looked & set(states):
            return
        for state in states:
            used = any(state in names_in(node.test) for node in refusals)
            if any(_refused(node.test, state) for node in refusals):
                continue
            passed = any(
                isinstance(node, ast.Name) and node.id == state for call in function.calls for node in call.args
            )
            if used and not passed:
                yield Hit(
                    module,
                    last,
                    function,
                    f"The dtypes of {', '.join(sorted(looked & function.param_names)[:4])} are checked, that of "
                    f"`{state}` is not.",
                    "possible",
                    f"Refuse dtypes of `{state}` that the kernel does not read.",
                )
                return


def _refuses(node: ast.If) -> bool:
    last = node.body[-1]
    if isinstance(last, ast.Raise):
        return True
    return isinstance(last, ast.Return) and isinstance(last.value, (ast.Constant, ast.JoinedStr))


def _refused(test: ast.expr, state: str) -> bool:
    """Return whether a test that refuses does so for any state at all: then there is none to look at."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return any(_refused(each, state) for each in test.values)
    return isinstance(test, ast.Compare) and ast.unparse(test) == f"{state} is not None"


def _owners(expr: ast.AST, attribute: str) -> set[str]:
    """Return the names whose attribute an expression looks at."""
    return {
        node.value.id
        for node in ast.walk(expr)
        if isinstance(node, ast.Attribute) and node.attr == attribute and isinstance(node.value, ast.Name)
    }


def _looped(function: Function) -> set[str]:
    """Return the parameters whose dtype is looked at through a loop's variable."""
    found: set[str] = set()
    for node in function.nodes:
        if isinstance(node, ast.For) and any(_owners(inner, "dtype") & names_in(node.target) for inner in node.body):
            found |= names_in(node.iter) & function.param_names
    return found


def _leading_check(function: Function, state: str) -> ast.AST | None:
    """Return the test of the state's first size, if there is one."""
    for node in function.nodes:
        if isinstance(node, (ast.If, ast.Assert)) and f"{state}.shape[0]" in ast.unparse(node.test):
            return node
    return None


def _checked(function: Function, state: str) -> ast.AST | None:
    """Return what looks at more of the state's shape than its first size."""
    for node in function.nodes:
        if isinstance(node, ast.Compare):
            text = ast.unparse(node)
            if re.search(rf"\b{state}\.(shape(?!\[0\])|size\(\)|size\((?!0\)))", text):
                return node
        if isinstance(node, ast.Call):
            name = (function.called(node) or "").rpartition(".")[2]
            if _CHECKER.search(name) and any(state in names_in(each) for each in [*node.args, *node.keywords]):
                return node
        unpacked = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)
        if unpacked and ast.unparse(node.value) == f"{state}.shape":  # type: ignore[attr-defined]
            return node
    return None


RULE = UncheckedStateLayout()
