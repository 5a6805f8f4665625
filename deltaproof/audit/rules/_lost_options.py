"""Options that one call, branch or direction honours and the one beside it does not."""

from __future__ import annotations

from collections.abc import Iterator

from deltaproof.audit.flow import arms, collected, handed_on
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Hit, Quote, Seen


def lost(module: Module, project: Project) -> Iterator[Seen]:
    """Yield every option of a module that is lost between neighbours."""
    pairs: dict[int, dict[str, Function]] = {}
    for function in module.functions:
        yield from _calls(module, function, project)
        yield from _launches(module, function, project)
        yield from _places(module, function)
        yield from _branches(module, function)
        yield from collected_for(module, function)
        if function.owner is not None and function.name in ("forward", "backward"):
            pairs.setdefault(id(function.owner), {})[function.name] = function
    for pair in pairs.values():
        if len(pair) == 2:
            yield from _directions(module, pair["forward"], pair["backward"], project)
    yield from _late(module)


def collected_for(module: Module, function: Function) -> Iterator[Seen]:
    """Yield calls that lack the keywords which a function collects for them."""
    rest = function.node.args.kwarg
    for call, called in collected.for_a_callee(function) if rest is not None else ():
        assert rest is not None
        yield Hit(
            module,
            call,
            function,
            f"`{function.name}` collects `**{rest.arg}` and calls `{called}` without them; nothing else reads them.",
            "likely",
            f"Pass `**{rest.arg}` on to `{called}`.",
            [Quote(module, rest, "what is collected")],
        )


def _late(module: Module) -> Iterator[Seen]:
    for each in collected.attached_late(module):
        yield Hit(
            module,
            each.leave,
            each.function,
            f"`{each.function.name}` returns before it sets `{each.what}`; `{each.other.name}` sets it before the same "
            "return.",
            "likely",
            f"Set `{each.what}` before the return.",
            [Quote(module, each.node, "set too late"), Quote(module, each.early, f"in `{each.other.name}`")],
        )


def _calls(module: Module, function: Function, project: Project) -> Iterator[Seen]:
    for each in handed_on.kept_from_sibling(function, project):
        called = function.called(each.call)
        yield Hit(
            module,
            each.call,
            function,
            f"`{function.name}` hands `{each.option}` on to one call, but not to `{called}`, which takes it and works "
            "on the same data.",
            "likely",
            f"Pass `{each.option}={each.option}` here too.",
            [Quote(module, each.other, "where it is handed on")],
        )


def _launches(module: Module, function: Function, project: Project) -> Iterator[Seen]:
    for call, kernel, name in handed_on.lost_in_launch(function, project):
        yield Hit(
            module,
            call,
            function,
            f"this launch of `{kernel.name}` lacks `{name}`, which has no default, though `{function.name}` has it.",
            "likely",
            f"Pass `{name}={name}`.",
            [Quote(kernel.module, kernel.node, "the kernel asks for it")],
        )


def _places(module: Module, function: Function) -> Iterator[Seen]:
    for call, target, names in handed_on.by_place(function):
        yield Hit(
            module,
            call,
            function,
            f"`{'`, `'.join(names)}` lands in `*args` of `{target.name}`, which takes it by name only, and keeps its "
            "default.",
            "likely",
            f"Pass it by name: `{names[0]}={names[0]}`.",
            [Quote(target.module, target.node, "takes it by name only")],
        )


def _branches(module: Module, function: Function) -> Iterator[Seen]:
    for each in arms.unapplied(function):
        yield Hit(
            module,
            each.result,
            function,
            f"this branch leaves `{each.option}` out, which its sibling applies to the same result.",
            "likely",
            f"Apply `{each.option}` here too, or raise where it is given.",
            [Quote(module, each.applied, "the sibling applies it")],
        )


def _directions(module: Module, forward: Function, backward: Function, project: Project) -> Iterator[Seen]:
    for each in handed_on.lost_in_backward(forward, backward, project):
        yield Hit(
            module,
            each.call,
            backward,
            f"backward leaves `{each.option}` of `{backward.called(each.call)}` at its default, forward gives it "
            "to its twin.",
            "likely",
            f"Keep `{each.option}` in `ctx` and pass it on.",
            [Quote(module, each.other, "what forward gives")],
        )
