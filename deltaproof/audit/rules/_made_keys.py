"""What incomplete-cache-key says of functions that make keys, and of buffers that are kept."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.caches import CacheStore
from deltaproof.audit.flow.kept_buffers import unchecked_dtype
from deltaproof.audit.flow.key_functions import ignored, source_only, unhashed, unpassed
from deltaproof.audit.rule import Hit, Quote, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module

_OPTIONS = re.compile(r"option|flag|pass_config|compile_args|kwargs|define", re.I)
FIX = "Add it to the key."


def made_keys(module: Module) -> Iterator[Seen]:
    """Yield key functions that leave out what they are given."""
    for function in module.functions:
        for left in ignored(module, function):
            yield Hit(
                module,
                left.node,
                function,
                f"The key is made without `{left.name}`, which `{function.name}` is given.",
                "likely",
                FIX,
                (Quote(module, left.because, left.why),),
            )
        source = source_only(function)
        if source is not None:
            yield Hit(
                module,
                source,
                function,
                "The key holds a function's source, and nothing of what the function closes over: two functions made "
                "by one factory share an entry.",
                "possible",
                "Add the closure's values (inspect.getclosurevars) to the key.",
            )
    if "__hash__" in module.text:
        for left in unhashed(module):
            yield Hit(
                module,
                left.node,
                left.function,
                f"The hash of the contents leaves out `{left.name}`.",
                "likely",
                "Add it to what is hashed.",
                (Quote(module, left.because, left.why),),
            )


def kept(module: Module, store: CacheStore, found: list[ast.AST]) -> Iterator[Seen]:
    """Yield what a stored value is made from and its key leaves out."""
    for left in unpassed(module, store):
        yield Hit(
            module,
            left.node,
            left.function,
            f"The key is made without `{left.name}`.",
            "likely",
            FIX,
            (Quote(module, left.because, left.why), Quote(module, store.node, "stored under the key")),
        )
    dtype = unchecked_dtype(store, found)
    if dtype is not None:
        yield Hit(
            module,
            store.node,
            store.function,
            f"The buffer is made once, for the first caller's `{ast.unparse(dtype)}`, and neither its key nor the "
            "check for it names a dtype: a caller with another one gets it too.",
            "likely",
            "Compare the buffer's dtype too, or put the dtype into the key.",
            (Quote(module, dtype, "the first caller's"),),
        )


def binary_key(module: Module, function: Function) -> Iterator[Seen]:
    """Yield a key of compiled binaries that is made from source and target alone."""
    names = sorted(function.param_names)
    source = [name for name in names if re.search(r"(^|_)(code|source|src)(_|$)", name) and "target" not in name]
    target = [name for name in names if re.search(r"target|arch", name)]
    hashed = function.calls_of("sha256", "md5", "sha1", "blake2b")
    if not source or not target or not hashed:
        return
    spelled = [getattr(node, part, None) for node in function.nodes for part in ("id", "attr", "value")]
    words = [*names, *(each for each in spelled if isinstance(each, str))]
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
