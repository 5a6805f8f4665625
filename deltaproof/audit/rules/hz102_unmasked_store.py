"""x"""

from __future__ import annotations
from collections.abc import Iterator
from deltaproof.audit.flow.bounds import gaps
from deltaproof.audit.flow.rounding import exact, overhangs
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen


class UnmaskedStore(Rule):
    code = "HZ102"
    name = "unmasked-store"
    triggers = ("tl.store", "tl.atomic")
    kinds = ("store", "atomic")

    def check(self, module, project) -> Iterator[Seen]:
        for kernel in module.kernels:
            for gap in gaps(kernel, self.kinds):
                if gap.guard is not None:
                    yield Drop(module, gap.access.call, kernel, f"guarded at line {gap.guard.lineno}")
                    continue
                if exact(project, kernel, gap.range.text):
                    yield Drop(module, gap.access.call, kernel, "exact")
                    continue
                yield Hit(
                    module,
                    gap.access.call,
                    kernel,
                    f"{gap.range.text} axis {gap.range.axis} vs line {gap.sibling.node.lineno} < {gap.sibling.limit}",
                    "likely",
                    "x",
                    (),
                )
            for over in overhangs(project, kernel, self.kinds):
                yield Hit(
                    module,
                    over.access.call,
                    kernel,
                    f"OVER {over.range.text} {over.launch.host.module.path}:{over.node.lineno}",
                    "likely",
                    "x",
                    (),
                )


RULE = UnmaskedStore()
