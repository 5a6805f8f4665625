"""appended-cache

## What it does
Reports what of this hazard can be seen in a cache's class: a window that is kept only once it is full (below it the new
entries are concatenated and nothing cuts the result to the window), one counter of seen tokens that a single layer
advances and every layer is told, and a ``reset`` that does nothing although the class keeps a state.

## Why it matters
The cache then holds entries that it must not hold: stale keys beyond the window, positions of another layer, the state
of the former prompt. Attention reads them like any other.

## Example
Bad:

```python
class WindowCache:
    def update(self, new, window):
        if self.keys.shape[1] >= window:
            self.keys = self.keys.roll(-new.shape[1], 1)
            self.keys[:, -new.shape[1]:] = new
        else:
            self.keys = torch.cat([self.keys, new], 1)
```

Good:

```python
class WindowCache:
    def update(self, new, window):
        if self.keys.shape[1] >= window:
            self.keys = self.keys.roll(-new.shape[1], 1)
            self.keys[:, -new.shape[1]:] = new
        else:
            self.keys = torch.cat([self.keys, new], 1)[:, -window:]
```

## Do this instead
Concatenate and keep the last entries of the window in every case; count tokens for each layer; let ``reset`` clear
what ``update`` writes.

## Seen in
Layer caches of linear-attention models with sliding windows, filled by chunked prefill.

## Known limits
Caches that are appended to in a denoising loop, or not rolled back after rejected drafts, take running to see.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import names_in
from deltaproof.audit.model.names import dotted
from deltaproof.audit.rule import Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_WINDOW = re.compile(r"window")
_LAYER = re.compile(r"^layer_?(idx|id|index|num)?$")
_ABSTRACT = re.compile(r"abstract|Protocol|ABC")


class AppendedCache(Rule):
    """See the module's docstring."""

    code = "HZ304"
    name = "appended-cache"
    triggers = ("window", "def reset(", "seen_tokens", "layer_idx == 0", "layer_id == 0")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield caches that keep what they must not."""
        for function in module.functions:
            if function.is_kernel or function.owner is None:
                continue
            methods = [each for each in module.functions if each.owner is function.owner]
            yield from self._window(module, function)
            yield from self._counter(module, function, methods)
            if function.name == "reset":
                yield from self._reset(module, function, methods)

    def _window(self, module: Module, function: Function) -> Iterator[Seen]:
        for node in function.nodes:
            if not isinstance(node, ast.If) or not node.orelse:
                continue
            window = _full(node.test)
            if not window:
                continue
            cats = [
                each
                for statement in node.orelse
                for each in ast.walk(statement)
                if isinstance(each, ast.Call) and dotted(each.func) in ("torch.cat", "torch.concat", "mx.concatenate")
            ]
            if not cats or _cuts(function, node, window):
                continue
            yield Hit(
                module,
                cats[0],
                function,
                f"Below `{window}` the new entries are appended and nothing cuts the result: a chunk that crosses the "
                "window leaves more entries than it holds.",
                "likely",
                f"Keep the last `{window}` entries of the concatenation.",
                (Quote(module, node.test, "only a full window is rolled"),),
            )

    def _counter(self, module: Module, function: Function, methods: list[Function]) -> Iterator[Seen]:
        for node in function.nodes:
            if not isinstance(node, ast.If) or not isinstance(node.test, ast.Compare):
                continue
            test = node.test
            first = isinstance(test.comparators[0], ast.Constant) and test.comparators[0].value == 0
            if not (isinstance(test.left, ast.Name) and _LAYER.match(test.left.id) and first):
                continue
            if test.left.id not in function.param_names or not isinstance(test.ops[0], ast.Eq):
                continue
            for statement in node.body:
                if not isinstance(statement, ast.AugAssign):
                    continue
                counter = dotted(statement.target)
                for method in methods:
                    told = next(
                        (
                            each
                            for each in method.nodes
                            if isinstance(each, ast.Return) and each.value is not None and dotted(each.value) == counter
                        ),
                        None,
                    )
                    if told is not None and counter and any(_LAYER.match(name) for name in method.param_names):
                        yield Hit(
                            module,
                            statement,
                            function,
                            f"`{counter}` is advanced by layer 0 alone, and `{method.name}` returns it for all.",
                            "likely",
                            "Count for each layer.",
                            (Quote(module, told, "returned whatever layer is asked for"),),
                        )

    def _reset(self, module: Module, function: Function, methods: list[Function]) -> Iterator[Seen]:
        assert function.owner is not None
        body = [node for node in function.node.body if not _docstring(node)]
        idle = all(isinstance(node, ast.Pass) or _ellipsis(node) for node in body)
        if not idle or any("abstract" in name for name, _ in function.decorators):
            return
        if any(_ABSTRACT.search(ast.unparse(base)) for base in [*function.owner.bases, *function.owner.keywords]):
            return
        for method in methods:
            if method.name not in ("update", "append", "step", "extend"):
                continue
            for node in method.nodes:
                if isinstance(node, (ast.Assign, ast.AugAssign)):
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    for target in targets:
                        held = target.value if isinstance(target, ast.Subscript) else target
                        if dotted(held).startswith("self."):
                            yield Hit(
                                module,
                                function.node,
                                function,
                                f"`reset` does nothing, and `{method.name}` writes `{dotted(held)}`: the next prompt "
                                "starts from the former one's.",
                                "likely",
                                f"Clear `{dotted(held)}` and the counters.",
                                (Quote(module, node, "written here"),),
                            )
                            return


def _full(test: ast.expr) -> str:
    """Return the window's name where a test asks whether a cache's length has reached it."""
    for node in ast.walk(test):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], (ast.GtE, ast.Eq)):
            right = node.comparators[0]
            name = dotted(right)
            if _WINDOW.search(name) and any(
                isinstance(part, ast.Attribute) and part.attr in ("shape", "size") for part in ast.walk(node.left)
            ):
                return name
    return ""


def _cuts(function: Function, node: ast.If, window: str) -> bool:
    """Whether the other branch, or what follows, slices by the window."""
    first = node.orelse[0].lineno
    for each in function.nodes:
        if isinstance(each, ast.Slice) and getattr(each, "lineno", 0) >= first:
            for bound in (each.lower, each.upper):
                if bound is not None and (window in names_in(bound) or window in ast.unparse(bound)):
                    return True
    return False


def _docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _ellipsis(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...


RULE = AppendedCache()
