"""incomplete-cache-key

## What it does
Looks at what is kept between calls under a key: compiled kernels, casts, registered objects. It reports a key made from
an object's address (``id(x)``, ``x.data_ptr()``) whose owner may die. It reports a key of a compiled kernel that lacks
what was baked in: a compile-time constant, a name that the compiled function closes over, the shape of a tensor that
the compiler saw, the dtype, all strides but one, the device whose properties chose the options. And it reports a key
for compiled binaries that is made from source and target but not from the compiler's options. Functions that make keys
are read too: a parameter, or a field under a hash of contents, that the built thing depends on and the key ignores; an
argument of the builder that its key function is not given; a function's source hashed without what it closes over,
also in functions called a hash. A buffer that is made when there is none must not have the first caller's dtype. What a
program is made with before it is compiled belongs to the key too, and so does the device of tensors that are kept.

## Why it matters
The second caller with another shape, dtype, stride or device gets the first caller's kernel. It runs without an error
and reads out of place. An address is given to the next object as soon as its owner is freed: a lookup by address then
returns what belonged to somebody else.

## Example
Bad:

```python
_KERNELS = {}

def run(q, g, scale):
    heads = q.shape[2]
    key = (scale, q.dtype)
    if key not in _KERNELS:
        _KERNELS[key] = cute.compile(kernel, from_dlpack(q), from_dlpack(g), heads, scale)
    return _KERNELS[key](q, g, heads, scale)
```

Good:

```python
_KERNELS = {}

def run(q, g, scale):
    heads = q.shape[2]
    key = (scale, q.dtype, g.dtype, heads)
    if key not in _KERNELS:
        _KERNELS[key] = cute.compile(kernel, from_dlpack(q), from_dlpack(g), heads, scale)
    return _KERNELS[key](q, g, heads, scale)
```

## Do this instead
Put into the key everything that the compiled object depends on, best by making it the only input of the function that
compiles. Use a counter or the object itself, held weakly, in place of its address.

## Seen in
Wrappers of hand-written decode kernels: head counts, gate dtype, inner strides and the device were missing one after
the other; a cache of casts keyed by ``data_ptr`` served another layer's weights.

## Known limits
Which arguments a compiler bakes in is told by the kernel's annotations, where it is found, and by where they come
from (shapes, tensors). Names of batch and token counts are taken to be dynamic. The ``key=`` of a Triton autotuner
chooses speed, not results, and is not looked at. An owner that other modules keep for ever is not known.
"""

from __future__ import annotations

import ast
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.address_keys import is_buffer, is_weak, kept_alive, looked_up, named_too, owner_of
from deltaproof.audit.flow.baked import (
    DYNAMIC,
    dtype_checked,
    free_dtypes,
    global_query,
    key_names,
    key_node,
    missing_sizes,
    strides_checked,
)
from deltaproof.audit.flow.caches import CacheStore, cache_stores, reached
from deltaproof.audit.flow.compiled import (
    baked_arguments,
    compile_call,
    derived,
    derived_at,
    free_names,
    from_shape,
    varying,
)
from deltaproof.audit.model.names import dotted
from deltaproof.audit.rule import Hit, Quote, Rule, Seen
from deltaproof.audit.rules._kept_programs import device_keys, program_keys
from deltaproof.audit.rules._made_keys import FIX, binary_key, kept, made_keys

if TYPE_CHECKING:
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_DEVICE = re.compile(r"device|arch|capability|(^|_)sm(_|$)|cc_major", re.I)
_ID = re.compile(r"(?<![\w.])id\(")
_STORE = re.compile(r"^[ \t]*[\w.]+\[", re.M)
_KEPT = re.compile(r"^[ \t]*[\w.]*(?:cache|buf|workspace|scratch)\w*\[[^:\n]*\][^\n]*=", re.M | re.I)


class IncompleteCacheKey(Rule):
    """See the module's docstring."""

    code = "HZ702"
    name = "incomplete-cache-key"
    triggers = ("compile", "id(", "data_ptr(", "sha256(", "md5(", "_key", "__hash__", "BUFFER", "cache", "CACHE")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield keys that two different things share."""
        text = module.text
        binaries = "sha256(" in text or "md5(" in text
        keys = "_key" in text or "__hash__" in text or "getsource(" in text
        stores = keys or "data_ptr(" in text or "compile" in text or _ID.search(text)
        if keys:
            yield from made_keys(module)
        line = _STORE if stores else _KEPT
        starts = module.lines_with(line)
        if not binaries and not starts:
            return
        for function in module.functions:
            if function.is_kernel:
                continue
            if binaries and "key" in function.name.lower():
                yield from binary_key(module, function)
            if bisect_left(starts, function.line) == bisect_right(starts, function.end_line):
                continue
            for store in cache_stores(function):
                found = reached(function, store.keys)
                yield from self._address(module, store, found)
                yield from kept(module, store, found)
                yield from device_keys(module, store, found)
                compiled = compile_call(function, store.value)
                if compiled is not None:
                    yield from self._compiled(module, project, store, compiled, found)
                    yield from self._baked(module, project, store, compiled, found)
                    yield from program_keys(module, store, compiled, found)

    def _address(self, module: Module, store: CacheStore, found: list[ast.AST]) -> Iterator[Seen]:
        function = store.function
        for node in found:
            owner = owner_of(node)
            text = dotted(owner) if owner is not None else ""
            if not text or text in ("self", "cls"):
                continue
            if isinstance(function.parents.get(node), ast.BinOp):
                continue  # its alignment
            if kept_alive(module, store, text) or named_too(found, text) or is_buffer(store):
                return
            key = ast.unparse(store.keys[0])
            handed_out = any(
                isinstance(each, ast.Return) and each.value is not None and ast.unparse(each.value) == key
                for each in function.nodes
            )
            if not handed_out and (is_weak(module, store.container) or not looked_up(function, store.container)):
                return
            yield Hit(
                module,
                node,
                function,
                f"`{store.container}` is keyed by `{ast.unparse(node)}`, an address that the next object gets when "
                f"`{text}` is freed.",
                "likely",
                f"Keep `{text}` alive with the entry, drop the entry with it (weakref.finalize), or use a counter.",
                (Quote(module, store.node, "stored under that key"),),
            )
            return

    def _compiled(
        self, module: Module, project: Project, store: CacheStore, compiled: ast.Call, found: list[ast.AST]
    ) -> Iterator[Seen]:
        function = store.function
        names = key_names(function, found)
        words = names | {node.attr for node in found if isinstance(node, ast.Attribute)}
        node = key_node(function, store)
        quote = Quote(module, compiled, "compiled for these arguments, stored under the key")
        given = baked_arguments(function, compiled)
        missing = missing_sizes(function, given, names)
        if missing:
            listed = ", ".join(f"`{name}`" for name in missing)
            yield Hit(
                module,
                node,
                function,
                f"The kernel is compiled with {listed}, taken from the shapes of its tensors, and the key lacks "
                f"{'it' if len(missing) == 1 else 'them'}.",
                "likely",
                FIX,
                (quote,),
            )
        keyed = any("dtype" in word.lower() for word in words) or dtype_checked(function)
        tensors = set() if keyed else free_dtypes(project, store, compiled, given)
        if tensors:
            listed = ", ".join(f"`{name}`" for name in sorted(tensors))
            yield Hit(
                module,
                node,
                function,
                f"The kernel is compiled for the dtypes of {listed}, and the key holds no dtype.",
                "possible",
                FIX,
                (quote,),
            )
        yield from self._strides(module, store, found, quote)
        if not any(_DEVICE.search(word) for word in words):
            query = global_query(module, function)
            if query is not None:
                yield Hit(
                    module,
                    node,
                    function,
                    "Options are taken from one device's properties, read when the module is imported, and the key "
                    "names no device: another device's tensors get the same kernel.",
                    "likely",
                    "Ask the properties of the operands' device and add its architecture to the key.",
                    (Quote(module, query, "asked once, of one device"), quote),
                )

    def _baked(
        self, module: Module, project: Project, store: CacheStore, compiled: ast.Call, found: list[ast.AST]
    ) -> Iterator[Seen]:
        """Yield compile-time constants and closed-over names that the key lacks."""
        function = store.function
        keys = key_names(function, found)
        inner = [each for each in module.functions if each.outer is function]
        shown = {node.id for node in ast.walk(compiled) if isinstance(node, ast.Name)}
        for each in inner:
            if each.name not in shown:
                continue
            for name in free_names(each):
                if name.id in keys or name.id not in varying(function) or derived_at(function, name.id, compiled, keys):
                    continue
                keys.add(name.id)
                yield Hit(
                    module,
                    name,
                    each,
                    f"`{each.name}` is compiled with `{name.id}` of the function around it, and the key lacks it.",
                    "likely",
                    FIX,
                    (Quote(module, key_node(function, store), "the key"), Quote(module, compiled, "compiled here")),
                )
        kernel = project.function(module.resolve(compiled.args[0]), module) if compiled.args else None
        if kernel is None:
            return
        names = [param for param in kernel.params if param.name != "self"]
        for param, argument in zip(names, baked_arguments(function, compiled), strict=False):
            if not re.search(r"constexpr", param.annotation, re.I) or not isinstance(argument, ast.Name):
                continue
            if argument.id in keys or argument.id not in varying(function):
                continue
            if from_shape(function, argument) and not DYNAMIC.match(argument.id):
                continue  # said above
            if not derived(function, argument, keys):
                keys.add(argument.id)
                yield Hit(
                    module,
                    argument,
                    function,
                    f"`{argument.id}` is the compile-time constant `{param.name}` of `{kernel.name}`, and the key "
                    "lacks it.",
                    "likely",
                    FIX,
                    (
                        Quote(module, key_node(function, store), "the key"),
                        Quote(kernel.module, kernel.node, "the kernel"),
                    ),
                )

    def _strides(self, module: Module, store: CacheStore, found: list[ast.AST], quote: Quote) -> Iterator[Seen]:
        single: dict[str, list[ast.Call]] = {}
        for node in found:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "stride":
                owner = ast.unparse(node.func.value)
                single.setdefault(owner, []).append(node)
        for owner, calls in single.items():
            if isinstance(store.function.parents.get(calls[0]), ast.BinOp) or strides_checked(
                store.function, owner, calls[0]
            ):
                continue
            if len(calls) == 1 and len(calls[0].args) == 1 and isinstance(calls[0].args[0], ast.Constant):
                yield Hit(
                    module,
                    calls[0],
                    store.function,
                    f"The key holds one stride of `{owner}`; two tensors that differ in another stride share a kernel.",
                    "likely",
                    f"Put `tuple({owner}.stride())` into the key, or assert the other strides.",
                    (quote,),
                )


RULE = IncompleteCacheKey()
