"""A differentiable operator is tested in the forward only.

## What it does
Follows the operators that a test file imports to their definition. Where one calls an `autograd.Function` with a
backward, and neither this file nor any other test that names it asks for a gradient, its first test is reported.

## Why it matters
The backward is the larger half of the code, with masks, offsets and options of its own.

## Example
Bad:

```python
class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return launch(x)

    @staticmethod
    def backward(ctx, dy):
        return launch_backward(dy)


def scale(x):
    return Scale.apply(x)


def test_scale():
    x = torch.randn(2, 3)
    assert torch.allclose(scale(x), reference(x))
```

Good:

```python
class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return launch(x)

    @staticmethod
    def backward(ctx, dy):
        return launch_backward(dy)


def scale(x):
    return Scale.apply(x)


def test_scale():
    x = torch.randn(2, 3, requires_grad=True)
    scale(x).sum().backward()
    assert torch.allclose(x.grad, reference_gradient(x))
```

## Do this instead
Test every gradient against a reference for each path the forward tests cover.

## Seen in
flash-linear-attention #776, in the review.

## Known limits
Operators behind two or more wrappers are followed only through imports and re-exports. One gradient asked for anywhere
in the file counts for all its operators.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.cases import is_test
from deltaproof.audit.model.module import is_test_path
from deltaproof.audit.model.names import dotted
from deltaproof.audit.model.source import Unreadable
from deltaproof.audit.rule import Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_GRADIENT = re.compile(r"\.backward\(|autograd\.grad\(|gradcheck|\.grad\b|\bvjp\(|jacobian")
_PER_MODULE = 40


class ForwardOnlyTest(Rule):
    """HZ803."""

    code = "HZ803"
    name = "forward-only-test"
    triggers = ("def test",)
    tests = True

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield the first test of each operator whose gradient nobody tests."""
        if not module.is_test or _GRADIENT.search(module.text):
            return
        told: set[str] = set()
        for test in module.functions:
            if not is_test(test):
                continue
            for call in test.calls:
                name = test.called(call)
                if not name or name in told or len(told) > _PER_MODULE:
                    continue
                told.add(name)
                operator = project.function(name, module)
                applied = _applied(operator) if operator is not None else None
                if operator is None or applied is None or _tested_elsewhere(operator.name, module, project):
                    continue
                yield Hit(
                    module,
                    call,
                    test,
                    f"`{operator.name}` is differentiable (`{applied.name}` has a backward), but no test asks for its "
                    "gradient.",
                    "possible",
                    "Compare every gradient with a reference, in the same cases.",
                    (Quote(operator.module, applied, "has a backward of its own"),),
                )


def _applied(function: Function) -> ast.ClassDef | None:
    """Return the ``autograd.Function`` of the function's file that it applies, if that has a backward that works."""
    names = {
        dotted(call.func.value)
        for call in function.calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "apply"
    }
    for each in function.module.classes:
        if each.name in names and any(dotted(base).endswith("Function") for base in each.bases):
            backward = next(
                (part for part in each.body if isinstance(part, ast.FunctionDef) and part.name == "backward"), None
            )
            if backward is not None and not any(isinstance(part, ast.Raise) for part in backward.body):
                return each
    return None


def _tested_elsewhere(name: str, module: Module, project: Project) -> bool:
    for path in project.paths:
        relative = project.relative(path)
        if not is_test_path(relative) or relative == module.path:
            continue
        try:
            text = project.source(path).text
        except Unreadable:
            continue
        if name in text and _GRADIENT.search(text):
            return True
    return False


RULE = ForwardOnlyTest()
