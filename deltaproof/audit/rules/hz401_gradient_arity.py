"""An autograd function's backward returns another number of gradients than forward takes inputs.

## What it does
Counts, for every subclass of ``torch.autograd.Function``, the inputs of ``forward`` and the values of every
``return`` of ``backward``, through names, ``(None,) * n`` and the project's own functions. Reports too few values, too
many of which the last is not None, and a value that is itself a tuple.

## Why it matters
Autograd raises at the first backward pass; a value too many or in the wrong place is the gradient of another input.

## Example
Bad:

```python
class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor, chunk_size):
        ctx.factor = factor
        return x * factor

    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.factor, None
```

Good:

```python
class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor, chunk_size):
        ctx.factor = factor
        return x * factor

    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.factor, None, None
```

## Do this instead
Return one value for every input of ``forward``, in its order, None where there is no gradient.

## Seen in
fla pull request 921 (a helper's pair returned twice) and commit fae210c0 (an input was added to forward only).

## Known limits
Inputs with a default may be left out of ``apply``: they count only where a call of ``apply`` in the same file passes
them. Functions that take ``*args`` and values that cannot be counted are not judged; more None at the end is allowed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from deltaproof.audit.flow.counts import Returned, returned, tuple_count
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Hit, Quote, Rule, Seen

_BASES = ("torch.autograd.Function", "torch.autograd.function.Function")


def _applied(module: Module, owner: ast.ClassDef) -> tuple[int, ast.Call | None]:
    """Return the largest number of inputs that a call of ``apply`` passes, and the call."""
    most: tuple[int, ast.Call | None] = (0, None)
    for _, call in module.calls():
        if isinstance(call.func, ast.Attribute) and call.func.attr == "apply" and not call.keywords:
            given = call.args
            if module.resolve(call.func.value).rpartition(".")[2] != owner.name:
                continue
            if not any(isinstance(each, ast.Starred) for each in given) and len(given) > most[0]:
                most = len(given), call
    return most


def _is_none(expr: ast.expr) -> bool:
    return isinstance(expr, ast.Constant) and expr.value is None


class GradientArity(Rule):
    """HZ401."""

    code = "HZ401"
    name = "gradient-arity"
    triggers = ("autograd",)
    tests = True

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield returns of backward that do not fit forward."""
        for owner in module.classes:
            if not any(module.resolve(base) in _BASES for base in owner.bases):
                continue
            methods = {each.name: each for each in module.functions if each.owner is owner}
            forward, backward = methods.get("forward"), methods.get("backward")
            if forward is None or backward is None or forward.node.args.vararg is not None:
                continue
            if forward.node.args.kwonlyargs or forward.node.args.kwarg is not None:
                continue
            inputs = forward.params if "setup_context" in methods else forward.params[1:]
            needed = sum(1 for param in inputs if param.default is None)
            passed, call = _applied(module, owner)
            quotes = [Quote(module, forward.node, "the inputs")]
            if passed > needed and call is not None:
                needed = passed
                quotes.append(Quote(module, call, f"{passed} inputs are passed"))
            for each in returned(backward, project):
                yield from self._judge(module, backward, project, each, needed, len(inputs), quotes)

    def _judge(
        self,
        module: Module,
        backward: Function,
        project: Project,
        each: Returned,
        needed: int,
        most: int,
        quotes: list[Quote],
    ) -> Iterator[Seen]:
        name = backward.qualname.rpartition(".")[0]
        nested = [value for value in each.elements if (tuple_count(backward, project, value) or 0) > 1]
        extra = each.elements[most:]
        if nested and each.count > 1:
            message = f"`{ast.unparse(nested[0])}` is a tuple of values, returned as one gradient of `{name}`."
            fix = "Unpack it: one value for each input."
        elif each.count < needed:
            message = f"`backward` returns {each.count} gradients for the {needed} inputs of `{name}`."
            fix = f"Return {needed} values, None for inputs without a gradient."
        elif each.count > most and not all(_is_none(value) for value in extra):
            message = f"`backward` returns {each.count} gradients for the {most} inputs of `{name}`."
            fix = f"Return {most} values, one for each input."
        else:
            return
        yield Hit(module, each.node, backward, message, "proven", fix, quotes)


RULE = GradientArity()
