"""incomplete-cache-key

## What it does
Looks at what is kept between calls under a key: compiled kernels, casts, registered objects. It reports a key made from
an object's address (``id(x)``, ``x.data_ptr()``) whose owner may die. It reports a key of a compiled kernel that lacks
what was baked in: a compile-time constant, a name that the compiled function closes over, the shape of a tensor that
the compiler saw, the dtype, all strides but one, the device whose properties chose the options. And it reports a key
for compiled binaries that is made from source and target but not from the compiler's options.

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
Wrappers of hand-written decode kernels: head counts, gate dtype, inner strides and the device were left out of keys one
after the other; a cache of casts keyed by ``data_ptr`` served another layer's weights.

## Known limits
Which arguments a compiler bakes in is told by the kernel's annotations, where it is found, and by where they come
from (shapes, tensors).
Names of batch and token counts are taken to be dynamic. The ``key=`` of a Triton autotuner chooses speed, not results,
and is not looked at.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.caches import CacheStore, cache_stores, reached
from deltaproof.audit.flow.compiled import (
    baked_arguments,
    compile_call,
    derived,
    derived_at,
    free_names,
    from_shape,
    is_handle,
    varying,
)
from deltaproof.audit.flow.trace import names_in, resolved
from deltaproof.audit.model.names import dotted
from deltaproof.audit.rule import Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_DYNAMIC = re.compile(r"^(b|n|m|s|t|l|bs|batch\w*|num_seqs?|num_batch\w*|\w*tokens?\w*|total\w*|\w*seq_?len\w*)$", re.I)
_DEVICE = re.compile(r"device|arch|capability|(^|_)sm(_|$)|cc_major", re.I)
_OPTIONS = re.compile(r"option|flag|pass_config|compile_args|kwargs|define", re.I)
_QUERIES = ("get_device_properties", "get_device_capability")
FIX = "Add it to the key."


class IncompleteCacheKey(Rule):
    """See the module's docstring."""

    code = "HZ702"
    name = "incomplete-cache-key"
    triggers = (".compile(", "compile[", "id(", "data_ptr(", "sha256(", "md5(")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield keys that two different things share."""
        text = module.text
        binaries = "sha256(" in text or "md5(" in text
        stores = "data_ptr(" in text or re.search(r"(?<![\w.])id\(", text) or "compile" in text
        if not binaries and not stores:
            return
        for function in module.functions:
            if function.is_kernel:
                continue
            if binaries and "key" in function.name.lower():
                yield from self._binary(module, function)
            for store in cache_stores(function) if stores else ():
                found = reached(function, store.keys)
                yield from self._address(module, store, found)
                compiled = compile_call(function, store.value)
                if compiled is not None:
                    yield from self._compiled(module, store, compiled, found)
                    yield from self._baked(module, project, store, compiled, found)

    def _address(self, module: Module, store: CacheStore, found: list[ast.AST]) -> Iterator[Seen]:
        function = store.function
        for node in found:
            owner = _owner(node)
            if owner is None:
                continue
            text = dotted(owner)
            if not text or text in ("self", "cls"):
                continue
            if any(function.called(call).endswith(("finalize", "weakref.ref")) for call in function.calls):
                return
            if isinstance(function.parents.get(node), ast.BinOp):
                continue  # its alignment
            weak = _is_weak(module, store.container)
            held = any(
                isinstance(each, (ast.Name, ast.Attribute)) and dotted(each) == text for each in _kept(function, store)
            )
            checked = any(
                isinstance(each, ast.Compare) and isinstance(each.ops[0], (ast.Is, ast.IsNot)) and _spells(each, text)
                for each in function.nodes
            )
            if (held and not weak) or checked:
                return
            key = ast.unparse(store.keys[0])
            handed_out = any(
                isinstance(each, ast.Return) and each.value is not None and ast.unparse(each.value) == key
                for each in function.nodes
            )
            if not handed_out and (weak or not _looked_up(function, store.container)):
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

    def _compiled(self, module: Module, store: CacheStore, compiled: ast.Call, found: list[ast.AST]) -> Iterator[Seen]:
        function = store.function
        names = {node.id for node in found if isinstance(node, ast.Name)}
        words = names | {node.attr for node in found if isinstance(node, ast.Attribute)}
        node = _key_node(function, store)
        quote = Quote(module, compiled, "compiled for these arguments, stored under the key")
        given = baked_arguments(function, compiled)
        missing = sorted(
            {
                each.id
                for each in given
                if isinstance(each, ast.Name) and from_shape(function, each) and not _DYNAMIC.match(each.id)
                if each.id not in names and not derived(function, each, names)
            }
        )
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
        tensors = [
            each
            for each in given
            if isinstance(each, ast.AST) and any(is_handle(part) for part in reached(function, [each]))
        ]
        if tensors and not any("dtype" in word.lower() for word in words) and not _dtype_checked(function):
            yield Hit(
                module,
                node,
                function,
                "The kernel is compiled for the dtypes of the tensors it is shown, and the key holds no dtype.",
                "possible",
                FIX,
                (quote,),
            )
        yield from self._strides(module, store, found, quote)
        if not any(_DEVICE.search(word) for word in words):
            query = _global_query(module, function)
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
        keys = {node.id for node in found if isinstance(node, ast.Name)}
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
                    (Quote(module, _key_node(function, store), "the key"), Quote(module, compiled, "compiled here")),
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
            if from_shape(function, argument) and not _DYNAMIC.match(argument.id):
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
                        Quote(module, _key_node(function, store), "the key"),
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
            if isinstance(store.function.parents.get(calls[0]), ast.BinOp) or _strides_checked(store.function, owner):
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

    def _binary(self, module: Module, function: Function) -> Iterator[Seen]:
        names = function.param_names
        source = [name for name in names if re.search(r"(^|_)(code|source|src)(_|$)", name) and "target" not in name]
        target = [name for name in names if re.search(r"target|arch", name)]
        hashed = function.calls_of("sha256", "md5", "sha1", "blake2b")
        if not source or not target or not hashed:
            return
        words = set(names) | {node.id for node in function.nodes if isinstance(node, ast.Name)}
        words |= {
            node.value for node in function.nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        words |= {node.attr for node in function.nodes if isinstance(node, ast.Attribute)}
        if not any(_OPTIONS.search(word) for word in words):
            yield Hit(
                module,
                hashed[0],
                function,
                f"The key of a compiled binary is made from `{source[0]}` and `{target[0]}` but from no compiler "
                "options, which change the binary too.",
                "possible",
                "Take the compiler's options as an argument and add them to the key.",
            )


def _owner(node: ast.AST) -> ast.expr | None:
    """Return x of ``id(x)`` and of ``x.data_ptr()``."""
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id == "id" and len(node.args) == 1:
            return node.args[0]
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("data_ptr", "untyped_storage"):
            return node.func.value
    return None


def _kept(function: Function, store: CacheStore) -> list[ast.AST]:
    """Return what the stored value itself holds: names, tuples and dicts of them, no results of calls."""
    waiting: list[ast.AST] = [resolved(function, store.value)]
    found: list[ast.AST] = []
    while waiting:
        node = waiting.pop()
        found.append(node)
        if isinstance(node, (ast.Tuple, ast.List, ast.Dict)):
            waiting.extend(ast.iter_child_nodes(node))
        elif isinstance(node, ast.Call) and not isinstance(node.func, ast.Attribute):
            waiting.extend([*node.args, *(keyword.value for keyword in node.keywords)])
    found.append(store.value)
    return found


def _looked_up(function: Function, container: str) -> bool:
    """Whether a function also reads the container it stores into: a cache, not a register."""
    for node in function.nodes:
        if isinstance(node, ast.Compare) and any(dotted(each) == container for each in node.comparators):
            return True
        if isinstance(node, ast.Attribute) and node.attr in ("get", "setdefault") and dotted(node.value) == container:
            return True
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and dotted(node.value) == container:
            return True
    return False


def _strides_checked(function: Function, owner: str) -> bool:
    """Whether a function refuses tensors by their strides."""
    for node in function.nodes:
        raises = isinstance(node, ast.If) and any(isinstance(inner, ast.Raise) for inner in node.body)
        if isinstance(node, ast.Assert) or raises:
            text = ast.unparse(node.test)  # type: ignore[attr-defined]
            if f"{owner}.stride(" in text or f"{owner}.is_contiguous()" in text:
                return True
    return False


def _spells(node: ast.AST, text: str) -> bool:
    return any(isinstance(each, (ast.Name, ast.Attribute)) and dotted(each) == text for each in ast.walk(node))


def _is_weak(module: Module, container: str) -> bool:
    for statement in module.tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == container for target in targets):
            return "Weak" in ast.unparse(statement)
    return False


def _dtype_checked(function: Function) -> bool:
    return any(
        isinstance(node, ast.Compare)
        and any(isinstance(part, ast.Attribute) and part.attr == "dtype" for part in ast.walk(node))
        for node in function.nodes
    )


def _key_node(function: Function, store: CacheStore) -> ast.AST:
    """Return the expression that the key is written as."""
    key = store.keys[0] if len(store.keys) == 1 else None
    if key is None:
        return store.node
    if isinstance(key, ast.Name):
        for each in function.flow.reaching(key.id, key):
            if isinstance(each.value, ast.Tuple):
                return each.value
    return resolved(function, key) if resolved(function, key) is not key else key


def _global_query(module: Module, function: Function) -> ast.AST | None:
    """Return where the module asks one device for its properties, if the function uses what came of it."""
    queried: dict[str, ast.AST] = {}
    for statement in module.tree.body:
        if not isinstance(statement, ast.Assign):
            continue
        asked = any(
            isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in _QUERIES
            for node in ast.walk(statement.value)
        )
        if asked or names_in(statement.value) & queried.keys():
            for target in statement.targets:
                queried.update(dict.fromkeys(names_in(target) - {"_"}, statement))
    if not queried:
        return None
    return next((queried[n.id] for n in function.nodes if isinstance(n, ast.Name) and n.id in queried), None)


RULE = IncompleteCacheKey()
