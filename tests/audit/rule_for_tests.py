"""Finds loads without a mask.

What it does
    Reports `tl.load` calls in kernels that have no mask, and drops those in a function named `safe`.

Why it matters
    It does not: it is a rule for tests.

Example
    ```python
    b = tl.load(p)
    ```

Do this instead
    ```python
    b = tl.load(p, mask=m)
    ```

Seen in
    Nothing.

Known limits
    It raises on a kernel named `breaks`, and ends the process on one named `ends`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen


class UnmaskedLoad(Rule):
    code = "HZ101"
    name = "unmasked-load"
    stable = True
    triggers = ("load",)

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        for function in module.kernels:
            for call in function.calls_of("tl.load", "triton.language.load"):
                if function.name == "ends":
                    os._exit(3)
                if function.name == "breaks":
                    raise KeyError("no such name")
                if function.name == "safe":
                    yield Drop(module, call, function, "the function is safe")
                elif not any(keyword.arg == "mask" for keyword in call.keywords):
                    message = f"{function.name} loads without a mask"
                    quotes = [Quote(module, function.node, "the kernel")]
                    yield Hit(module, call, function, message, "likely", "pass `mask`", quotes)


RULE = UnmaskedLoad()
