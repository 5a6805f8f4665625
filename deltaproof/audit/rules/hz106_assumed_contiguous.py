"""A tensor is walked as dense though nobody checked it, or a buffer to be updated in place is copied first.

## What it does
Looks for four forms:
- a Triton kernel takes strides for some tensors and walks another one, which the launching function got from its
  caller and neither checked nor made contiguous, with strides computed from sizes;
- a kernel takes the strides of a table and uses only some of them;
- a compiled kernel is built for a layout given as a literal, and no tensor's strides are compared with it;
- ``.reshape()``, ``.flatten()`` or ``.contiguous()`` of a state, cache or pool whose result a kernel updates in place:
  for a strided buffer they return a copy.

## Why it matters
For a slice, a transposed view or a paged pool the kernel reads other rows, or writes its update into a copy that is
thrown away. Tests with fresh tensors cannot see it.

## Example
Bad:

```python
@triton.jit
def kernel(x, dy, dx, stride_x, D: tl.constexpr, BD: tl.constexpr):
    i = tl.program_id(0)
    o = tl.arange(0, BD)
    b_x = tl.load(x + i * stride_x + o, mask=o < D)
    b_dy = tl.load(dy + i * D + o, mask=o < D)
    tl.store(dx + i * D + o, b_x * b_dy, mask=o < D)


def backward(x, dy):
    dx = torch.empty_like(x)
    kernel[(x.shape[0],)](x, dy, dx, x.stride(0), x.shape[1], 64)
    return dx
```

Good:

```python
@triton.jit
def kernel(x, dy, dx, stride_x, D: tl.constexpr, BD: tl.constexpr):
    i = tl.program_id(0)
    o = tl.arange(0, BD)
    b_x = tl.load(x + i * stride_x + o, mask=o < D)
    b_dy = tl.load(dy + i * D + o, mask=o < D)
    tl.store(dx + i * D + o, b_x * b_dy, mask=o < D)


def backward(x, dy):
    dy = dy.contiguous()
    dx = torch.empty_like(x)
    kernel[(x.shape[0],)](x, dy, dx, x.stride(0), x.shape[1], 64)
    return dx
```

## Do this instead
Pass the strides, or check them and raise. For a buffer that is updated use ``.view()``, which raises where it would
have to copy, or pass the strides of the buffer as it is.

## Seen in
fla pull request 871 (the incoming gradient of a convolution) and flashinfer 3268 (a state pool that reshape cloned).

## Known limits
Checks made by callers in other files are not seen; what a decorator does is guessed from its name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from deltaproof.audit.flow.access import accesses
from deltaproof.audit.flow.indices import products, reached_names
from deltaproof.audit.flow.trace import origins
from deltaproof.audit.model.function import Function, Launch
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Hit, Quote, Rule, Seen

_GUARD = re.compile(r"guard|contiguous", re.IGNORECASE)
_CHECKS = frozenset({"is_contiguous", "stride", "contiguous", "view", "strides"})
_BUFFER = re.compile(r"(^|_)(states?|pools?|caches?)(_(source|pool|buffer|cache|states?))?$", re.IGNORECASE)
_COPIES = ("reshape", "contiguous", "flatten")
_MAJOR = re.compile(r"(^|_)(major|layout)$")
_STRIDE = re.compile(r"^s(tride)?s?_|_strides?(_|$)|^stride", re.IGNORECASE)


def _is_stride(name: str) -> bool:
    return _STRIDE.search(name) is not None


def _guarded(function: Function | None) -> bool:
    while function is not None:
        if any(_GUARD.search(name) for name, _ in function.decorators):
            return True
        function = function.outer
    return False


def _names(node: ast.AST, name: str) -> bool:
    return any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(node))


def _asks(node: ast.AST) -> bool:
    return any(isinstance(each, ast.Attribute) and each.attr in _CHECKS for each in ast.walk(node))


def _checked(host: Function, name: str) -> bool:
    """Return whether a function asks for the layout of a tensor anywhere, or hands it to something that may."""
    for node in host.nodes:
        if isinstance(node, ast.Attribute):
            if node.attr in _CHECKS and isinstance(node.value, ast.Name) and node.value.id == name:
                return True
        elif isinstance(node, ast.Call):
            if _GUARD.search(host.called(node)) and _names(node, name):
                return True
        elif isinstance(node, ast.For) and _names(node.iter, name) and _asks(node):
            return True
    return False


def _dense(module: Module, kernel: Function, project: Project) -> Iterator[Seen]:
    """Tensors walked by sizes in a kernel that takes strides for others."""
    strides = {name for name in kernel.param_names if _is_stride(name)}
    if not strides:
        return
    rows = [(access, reached_names(kernel, access.pointer)) for access in accesses(kernel)]
    strided = [access for access, names in rows if names & strides]
    if not strided:
        return
    candidates: dict[str, ast.expr] = {}
    bases = {access.base for access, names in rows if names & strides}
    for access, names in rows:
        if access.base in bases or access.base not in kernel.param_names or access.kind != "load" or names & strides:
            continue
        sized = _sized(kernel, access.pointer)
        if sized is not None:
            candidates.setdefault(access.base, sized)
    if not candidates:
        return
    for launch in project.launches_of(kernel):
        bound = launch.bound(kernel)
        for base, stride in list(candidates.items()):
            tensor = _from_caller(launch, bound.get(base))
            if tensor is None or _guarded(launch.host) or _checked(launch.host, tensor):
                continue
            del candidates[base]
            yield Hit(
                module,
                stride,
                kernel,
                f"`{base}` is walked as dense (`{ast.unparse(stride)}`) while the strides of `{strided[0].base}` are "
                f"passed; `{launch.host.name}` takes `{tensor}` from its caller unchecked.",
                "possible",
                f"Pass the strides of `{base}`, or make it contiguous in `{launch.host.name}`.",
                [
                    Quote(module, strided[0].call, "a strided sibling"),
                    Quote(launch.host.module, launch.call, "the launch"),
                ],
            )


def _sized(kernel: Function, pointer: ast.expr) -> ast.expr | None:
    """Return a product in an address with a size that is a parameter: the row stride of a dense tensor."""
    waiting: list[ast.AST] = [pointer]
    seen: set[int] = set()
    while waiting and len(seen) < 200:
        node = waiting.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, ast.Call) and kernel.called(node).endswith(".load"):
            continue
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for product, parts in products(kernel, node)[:1]:
                sizes = [
                    part
                    for part in parts
                    if isinstance(part, ast.Name) and re.fullmatch(r"[DKVNC]|dim|hidden.*", part.id)
                ]
                if len(parts) > 1 and any(part.id in kernel.param_names for part in sizes):
                    return product
        if isinstance(node, ast.Name) and node in kernel.parents:
            waiting += [each.value for each in kernel.flow.reaching(node.id, node) if each.value is not None]
        elif isinstance(node, (ast.expr, ast.keyword)):
            waiting.extend(ast.iter_child_nodes(node))
    return None


def _from_caller(launch: Launch, argument: ast.expr | None) -> str | None:
    """Return the host's parameter that an argument is, as it came; None where it is made or changed on the way."""
    if not isinstance(argument, ast.Name) or argument not in launch.host.parents:
        return None
    reached = launch.host.flow.reaching(argument.id, argument)
    return argument.id if reached and all(each.kind == "param" for each in reached) else None


def _unused_stride(module: Module, kernel: Function) -> Iterator[Seen]:
    """Strides of a table that are passed and not used, while another one of the same table is."""
    used = {node.id for node in kernel.nodes if isinstance(node, ast.Name)}
    for param in kernel.params:
        name = param.name
        if not _is_stride(name) or name in used:
            continue
        stem = name.rpartition("_")[0]
        others = [other for other in used & kernel.param_names if other != name and other.rpartition("_")[0] == stem]
        if stem.lower() in ("stride", "") or not others:
            continue
        for access in accesses(kernel):
            spelled = origins(kernel, access.pointer).names
            hit = next((other for other in others if other in spelled), None)
            if hit is not None and not access.ranges:
                yield Hit(
                    module,
                    access.call,
                    kernel,
                    f"`{access.base}` is addressed with `{hit}` and an assumed stride of 1, though `{name}` is passed.",
                    "possible",
                    f"Multiply the other index by `{name}`.",
                    [Quote(module, kernel.node, f"`{name}` is a parameter")],
                )
                break


def _copied_buffer(module: Module, host: Function, project: Project) -> Iterator[Seen]:
    """Copies of buffers that a kernel is to update."""
    for node in host.nodes:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        value = node.value
        if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in _COPIES):
            continue
        source = value.func.value
        if not isinstance(source, ast.Name) or source.id not in host.param_names or not _BUFFER.search(source.id):
            continue
        target = node.targets[0].id
        if not all(each.kind == "param" for each in host.flow.reaching(source.id, source)):
            continue
        if _layout_known(host, source.id, node) or _returned(host, target) or _copied_back(host, source.id, target):
            continue
        call = _updates(host, target, node, project)
        if call is not None:
            yield Hit(
                module,
                node,
                host,
                f"`{ast.unparse(value.func)}()` copies a strided `{source.id}`: the update through `{target}` is lost.",
                "likely",
                "Use `.view()`, which raises instead of copying, or pass the buffer with its strides.",
                [Quote(module, call, f"`{target}` goes to a kernel")],
            )


def _layout_known(host: Function, name: str, before: ast.stmt) -> bool:
    for node in host.nodes:
        if not isinstance(node, ast.Attribute) or node.attr not in ("is_contiguous", "stride"):
            continue
        if isinstance(node.value, ast.Name) and node.value.id == name and node.lineno <= before.lineno:
            return True
    return _guarded(host)


def _returned(host: Function, name: str) -> bool:
    return any(
        isinstance(node, ast.Return)
        and node.value is not None
        and any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(node.value))
        for node in host.nodes
    )


def _copied_back(host: Function, name: str, target: str) -> bool:
    for node in host.nodes:
        written: ast.AST | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("copy_", "set_"):
            written = node.func.value
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript) and target != name:
            written = node.targets[0].value
        if written is not None and _names(written, name):
            return True
    return False


def _updates(host: Function, target: str, after: ast.stmt, project: Project) -> ast.Call | None:
    """Return a call that lets a kernel write a buffer."""
    for launch in host.launches:
        kernel = project.kernel_of(launch)
        if kernel is None:
            continue
        stored = {access.base for access in accesses(kernel) if access.kind != "load"}
        for name, argument in launch.bound(kernel).items():
            if isinstance(argument, ast.Name) and argument.id == target and name in stored:
                return launch.call
    for call in host.calls:
        handed = host.called(call).endswith("from_dlpack") and call.args and call.lineno > after.lineno
        if handed and isinstance(call.args[0], ast.Name) and call.args[0].id == target:
            return call
    return None


def _claimed_layout(module: Module, host: Function) -> Iterator[Seen]:
    """Layouts that a kernel is built for and that no tensor is compared with."""
    for call in host.calls:
        named = [each for each in call.keywords if each.arg is not None and _MAJOR.search(each.arg)]
        fixed = [each for each in named if _literal(each.value)]
        built = host.parents.get(call)
        if not fixed or not isinstance(built, ast.Call) or built.func is not call:
            continue
        given = [each.value for each in built.keywords] + list(built.args)
        tensors = [each for each in given if isinstance(each, ast.Name) and origins(host, each).params]
        if tensors and not any(isinstance(node, ast.Attribute) and node.attr in _CHECKS for node in host.nodes):
            yield Hit(
                module,
                built,
                host,
                f"The kernel is built for `{fixed[-1].arg}`, and no layout of what `{host.name}` was given is checked.",
                "possible",
                "Compare the strides of every tensor with the layout and raise where they differ.",
                [Quote(module, fixed[-1].value, "the layout")],
            )


def _literal(expr: ast.expr) -> bool:
    if isinstance(expr, ast.IfExp):
        return _literal(expr.body) and _literal(expr.orelse)
    return isinstance(expr, ast.Constant) and isinstance(expr.value, str)


class AssumedContiguous(Rule):
    """HZ106."""

    code = "HZ106"
    name = "assumed-contiguous"
    triggers = ("triton", "cute", "tilelang")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield tensors that are taken for dense."""
        for function in module.functions:
            if function.kind in ("triton", "gluon"):
                yield from _dense(module, function, project)
                yield from _unused_stride(module, function)
            elif not function.is_kernel:
                yield from _copied_buffer(module, function, project)
                yield from _claimed_layout(module, function)


RULE = AssumedContiguous()
