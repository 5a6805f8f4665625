"""A tensor is walked as dense though nobody checked it, or a buffer to be updated in place is copied first.

## What it does
Looks for eight forms:
- a Triton kernel takes strides for some tensors and walks another one, which the launching function got from its
  caller and neither checked nor made contiguous, with strides computed from sizes;
- a Triton kernel walks a tensor with the stride of another one, where its own stride is passed and unused, or where a
  caller may hand over one of the two with rows further apart and nobody compares them;
- a kernel takes the strides of a table and uses only some of them;
- a condition names ``x.is_contiguous`` and does not call it, so that it always holds;
- a compiled kernel is built for a layout given as a literal, and no tensor's strides are compared with it;
- ``.reshape()``, ``.flatten()`` or ``.contiguous()`` of a state, cache or pool whose result a kernel updates in place:
  for a strided buffer they return a copy;
- a call whose value nobody takes writes into a copy (``out=x[:, :h].reshape(-1, d)``, ``x[mask].mul_(2)``);
- a tensor from ``expand``, of stride 0, goes to a kernel without its strides or to an extension that is built here.

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
fla pull request 871 (the incoming gradient of a convolution), flashinfer 3268 (a state pool that reshape cloned), fla
1139 (an activation walked with the gradient's strides), unsloth 3782 (a check that was not called), lightllm
878 (a copied output).

## Known limits
Only what is sure to copy counts as a copied output: parts of an axis behind the first one, merged or made contiguous,
permuted axes, masks and lists. Whether an extension reads the strides of its tensors is not known. Callers are followed
as far as calls by name lead; methods and what a dictionary of functions calls end the search. What a decorator does is
guessed from its name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from deltaproof.audit.flow import layouts
from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.indices import reached_names
from deltaproof.audit.flow.lost_outputs import returned
from deltaproof.audit.flow.skipped import base_of
from deltaproof.audit.flow.trace import origins
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Hit, Quote, Rule, Seen
from deltaproof.audit.rules._borrowed_rows import borrowed_rows, uncalled
from deltaproof.audit.rules._borrowed_strides import borrowed_findings
from deltaproof.audit.rules._copied_outputs import copied_outputs, stride_zero

_BUFFER = re.compile(r"(^|_)(states?|pools?|caches?)(_(source|pool|buffer|cache|states?))?$", re.IGNORECASE)
_COPIES = ("reshape", "contiguous", "flatten")
_CASTS = (*_COPIES, "to", "float", "view")
_MAJOR = re.compile(r"(^|_)(major|layout)$")
_STRIDE = re.compile(r"^s(tride)?s?_|_strides?(_|$)|^stride", re.IGNORECASE)


def _is_stride(name: str) -> bool:
    return _STRIDE.search(name) is not None


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
        sized = layouts.sized_product(kernel, access.pointer)
        if sized is not None:
            candidates.setdefault(access.base, sized)
    if not candidates:
        return
    for launch in project.launches_of(kernel):
        bound = launch.bound(kernel)
        for base, stride in list(candidates.items()):
            given = bound.get(base)
            entry = layouts.unchecked_from(launch.host, given, project)
            if entry is None or given is None:
                continue
            del candidates[base]
            yield Hit(
                module,
                stride,
                kernel,
                f"`{base}` is walked as dense (`{ast.unparse(stride)}`) while the strides of `{strided[0].base}` are "
                f"passed; `{entry.name}` takes `{ast.unparse(given)}` from its caller unchecked.",
                "possible",
                f"Pass the strides of `{base}`, or make it contiguous in `{entry.name}`.",
                [
                    Quote(module, strided[0].call, "a strided sibling"),
                    Quote(launch.host.module, launch.call, "the launch"),
                ],
            )


def _unused_stride(module: Module, kernel: Function, project: Project) -> Iterator[Seen]:
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
            if hit is not None and not access.ranges and _strided_table(kernel, access, project):
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


def _strided_table(kernel: Function, access: Access, project: Project) -> bool:
    """Return whether a launch hands over a table that came from outside, with a layout that nobody compares."""
    base = base_of(kernel, access)
    return any(
        layouts.unchecked_from(launch.host, launch.bound(kernel).get(base), project, strides=False) is not None
        for launch in project.launches_of(kernel)
    )


def _copied_buffer(module: Module, host: Function, project: Project) -> Iterator[Seen]:
    """Copies of buffers that a kernel is to update."""
    for node in host.nodes:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        value = node.value
        if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in _COPIES):
            continue
        source = value.func.value
        while isinstance(source, ast.Call) and isinstance(source.func, ast.Attribute) and source.func.attr in _CASTS:
            source = source.func.value
        if not isinstance(source, ast.Name) or source.id not in host.param_names or not _BUFFER.search(source.id):
            continue
        target = node.targets[0].id
        if not all(each.kind == "param" for each in host.flow.reaching(source.id, source)):
            continue
        if (
            layouts.layout_known(host, source.id, node)
            or returned(host, target)
            or _copied_back(host, source.id, target)
        ):
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


def _copied_back(host: Function, name: str, target: str) -> bool:
    for node in host.nodes:
        written: ast.AST | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("copy_", "set_"):
            written = node.func.value
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript) and target != name:
            written = node.targets[0].value
        if written is not None and layouts.names(written, name):
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
        if tensors and not any(isinstance(node, ast.Attribute) and node.attr in layouts.CHECKS for node in host.nodes):
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
    stable = True
    triggers = ("triton", "cute", "tilelang")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield tensors that are taken for dense."""
        for function in module.functions:
            if function.kind in ("triton", "gluon"):
                yield from _dense(module, function, project)
                yield from _unused_stride(module, function, project)
                borrowed = list(borrowed_findings(module, function))
                yield from borrowed or borrowed_rows(module, function, project)
            elif not function.is_kernel:
                yield from _copied_buffer(module, function, project)
                yield from _claimed_layout(module, function)
                yield from uncalled(module, function)
                yield from copied_outputs(module, function, project)
                yield from stride_zero(module, function, project)


RULE = AssumedContiguous()
