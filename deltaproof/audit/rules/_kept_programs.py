"""What incomplete-cache-key says of compiled programs, and of tensors that are kept for one device."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.baked import key_names, key_node
from deltaproof.audit.flow.caches import CacheStore
from deltaproof.audit.flow.programs import into_program, unlike_siblings, without_device
from deltaproof.audit.rule import Hit, Quote, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.module import Module

DEVICE = "Put the device into the key."


def program_keys(module: Module, store: CacheStore, compiled: ast.Call, found: list[ast.AST]) -> Iterator[Seen]:
    """Yield what the program that is compiled is made with and its key lacks."""
    function = store.function
    for name, made in into_program(function, compiled, key_names(function, found)):
        yield Hit(
            module,
            key_node(function, store),
            function,
            f"The program that is compiled is made with `{name.id}`, and the key lacks it.",
            "likely",
            "Add it to the key.",
            (Quote(module, made, "the program"), Quote(module, store.node, "stored under the key")),
        )


def device_keys(module: Module, store: CacheStore, found: list[ast.AST]) -> Iterator[Seen]:
    """Yield keys without a device of tensors that are made on one."""
    function = store.function
    device = without_device(store, found)
    other = None if device is not None else unlike_siblings(module, store, found)
    if device is not None:
        yield Hit(
            module,
            store.node,
            function,
            f"What `{store.container}` keeps is made on `{ast.unparse(device)}`, and the key names no device: a caller "
            "on another one gets it too.",
            "likely",
            DEVICE,
            (Quote(module, device, "the first caller's"),),
        )
    elif other is not None:
        yield Hit(
            module,
            store.node,
            function,
            f"The key of `{store.container}` names no device, while `{other.container}` beside it does.",
            "possible",
            DEVICE,
            (Quote(module, other.node, "kept by device"),),
        )
