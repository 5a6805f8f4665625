"""An option is honoured on one path and dropped on another one.

## What it does
Looks for these forms:
- a wrapper swallows ``**kwargs`` and forwards a fixed list to a function that knows more options;
- an option is set to None, or overwritten, though the caller may have given it and a sibling reads it;
- ``**loss_kwargs`` are collected and ``loss_fn`` is called without them;
- a setting is attached to a returned object behind an early return, and before it in a sibling function;
- a switch is a parameter and nothing in the function reads it;
- a registered operator passes a literal for a switch that another call of the same function takes from its caller;
- an option on sequences (``cu_seqlens``, ``seq_idx``, ``chunk_indices``) goes to one call and not to its neighbour;
- an option goes to the ``fwd`` function in forward and not to its ``bwd`` twin in backward;
- a bias or residual is applied in one branch and left out in the other one;
- an option is given by place and lands in ``*args``.

## Why it matters
The caller's choice has no effect and no error says so: packed sequences run as one, a gradient lacks a term, a kernel
adds a bias that is not there.

## Example
Bad:

```python
def chunk(q, k, v, scale, initial_state=None, cu_seqlens=None, reverse=False):
    return run(q, k, v, scale, initial_state, cu_seqlens, reverse)


def chunk_named(q, k, v, scale, initial_state=None, cu_seqlens=None, **kwargs):
    return chunk(q=q, k=k, v=v, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
```

Good:

```python
def chunk(q, k, v, scale, initial_state=None, cu_seqlens=None, reverse=False):
    return run(q, k, v, scale, initial_state, cu_seqlens, reverse)


def chunk_named(q, k, v, scale, initial_state=None, cu_seqlens=None, reverse=False):
    return chunk(q=q, k=k, v=v, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens, reverse=reverse)
```

## Do this instead
Name every option in the wrapper and pass it on, or raise for options that are not supported.

## Seen in
fla pull requests 1004 (a context swallowed by keywords), 842 and 1088 (``cu_seqlens`` replaced by a mask's);
flashinfer 3720 (a switch that nothing read); TileOPs 1018 (a bias that was always on).

## Known limits
A dropped option may be harmless where its default is the only value in use. Methods that override another one, checks,
implementations registered for an operator, and functions whose text says that a parameter is unused are not judged.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.options import arguments, chosen, dictated, forwarded, only_the_default, own_mode, refused
from deltaproof.audit.flow.trace import names_in
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen
from deltaproof.audit.rules._lost_options import lost

_SWITCH = re.compile(r"^(use|enable|disable|apply|output|return|allow|with|safe|reverse|causal)(_|$)")
_PER_TOKEN = re.compile(r"(^|_)(cu_?seqlens?|offsets|cp_context|initial_states?)(_\w+)?$")
_SAID = re.compile(r"unused|ignored|not used|no effect|compat|reserved|not supported|unsupported|deprecated", re.I)
_REGISTERED = re.compile(r"custom_op|register|library")
_ONE_WAY = re.compile(r"bwd|backward|recompute|fake")
LEAST_FORWARDED = 5
MANY_UNREAD = 5
"""So many parameters that nothing reads are there for another function's signature."""


def _swallowed(module: Module, function: Function, project: Project) -> Iterator[Seen]:
    """Keyword arguments that are accepted and go nowhere, though the function called next knows more options."""
    rest = function.node.args.kwarg
    if rest is None or function.owner is not None or rest.arg.startswith("_"):
        return
    reads = [node for node in function.nodes if isinstance(node, ast.Name) and node.id == rest.arg]
    if any(not isinstance(function.parents.get(node), ast.Compare) for node in reads):
        return
    for call in function.calls:
        if not isinstance(function.parents.get(call), ast.Return):
            continue
        target = project.function(function.called(call), module)
        bound = arguments(call, target) if target is not None and target is not function else None
        if target is None or bound is None or forwarded(function, bound) < LEAST_FORWARDED:
            continue
        lost = [param.name for param in target.params if param.default is not None and param.name not in bound]
        lost = [name for name in lost if name not in function.param_names and not _SAID.search(name)]
        if lost:
            yield Hit(
                module,
                call,
                function,
                f"`{function.name}` swallows `**{rest.arg}`: `{'`, `'.join(lost[:3])}` of `{target.name}` "
                f"cannot be reached and no error says so.",
                "likely",
                f"Name the options in `{function.name}` and pass them on, or raise for unknown ones.",
                [Quote(module, rest, "what is swallowed"), Quote(target.module, target.node, "what it could be")],
            )


def _reads_keyword(function: Function, name: str) -> ast.AST | None:
    rest = function.node.args.kwarg
    if rest is None:
        return None
    for node in function.nodes:
        key: ast.expr | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop"):
            key = node.args[0] if node.args and rest.arg in names_in(node.func.value) else None
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == rest.arg:
            key = node.slice
        if isinstance(key, ast.Constant) and key.value == name:
            return node
    return None


def _reset(module: Module, function: Function) -> Iterator[Seen]:
    """Options set to None that a sibling takes from its keyword arguments."""
    rest = function.node.args.kwarg
    if rest is None or any(isinstance(node, ast.Name) and node.id == rest.arg for node in function.nodes):
        return
    for node in function.nodes:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Constant) or node.value.value is not None:
            continue
        target = node.targets[0]
        if not isinstance(target, ast.Name) or target.id in function.param_names:
            continue
        name = target.id
        passed = [call for call in function.calls if any(each.arg == name for each in call.keywords)]
        if not passed:
            continue
        for other in module.functions:
            seen = _reads_keyword(other, name) if other is not function else None
            if seen is not None:
                yield Hit(
                    module,
                    node,
                    function,
                    f"`{name}` starts as None in `{function.name}`, which never reads it from `**{rest.arg}`; "
                    f"`{other.name}` does.",
                    "likely",
                    f'Take it from the caller: `{name} = {rest.arg}.get("{name}")`.',
                    [Quote(module, seen, f"`{other.name}` reads it"), Quote(module, passed[0], "where it goes")],
                )
                break


def _overwritten(module: Module, function: Function) -> Iterator[Seen]:
    """Parameters replaced by values of something else, without a look at what was given."""
    if function.is_kernel:
        return
    for param in function.params:
        if param.default is None or not _PER_TOKEN.search(param.name):
            continue
        for found in function.flow.definitions(param.name):
            if found.kind not in ("unpacked", "assign") or not isinstance(found.node, ast.Assign):
                continue
            if param.name in names_in(found.node.value) or not isinstance(found.node.value, ast.Call):
                continue
            if any(param.name in names_in(guard.test) for guard in guards(function, found.node)):
                continue
            before = [
                node
                for node in function.nodes
                if isinstance(node, ast.Name) and node.id == param.name and node.lineno < found.node.lineno
            ]
            if before:
                continue
            yield Hit(
                module,
                found.node,
                function,
                f"`{param.name}` of `{function.name}` is replaced without a look at what the caller gave.",
                "likely",
                f"Keep `{param.name}` where it is not None, or raise where both are given.",
                [Quote(module, function.node, "the parameter")],
            )
            break


def _unread(module: Module, function: Function, project: Project) -> Iterator[Seen]:
    """Switches that nothing reads."""
    if function.owner is not None or function.is_kernel or function.outer is not None or len(function.calls) < 4:
        return
    if (
        function.name.startswith("_")
        or "fake" in function.name
        or any(re.search("fake|overload|impl|(^|[._])register$", name) for name, _ in function.decorators)
        or dictated(module, function)
    ):
        return
    read: set[str] | None = None
    for param in function.params:
        default = param.default
        if not (isinstance(default, ast.Constant) and isinstance(default.value, bool) and _SWITCH.match(param.name)):
            continue
        if read is None:
            read = {node.id for each in function.node.body for node in ast.walk(each) if isinstance(node, ast.Name)}
        if param.name in read or "locals" in read:
            continue
        left = sum(1 for each in function.params if each.name not in read)
        if left >= MANY_UNREAD or refused(function, param) or only_the_default(function, param, project):
            continue
        place = function.node.args
        node = next(each for each in [*place.posonlyargs, *place.args, *place.kwonlyargs] if each.arg == param.name)
        about = [
            line
            for line in module.lines[function.line - 1 : function.end_line]
            if param.name in line and _SAID.search(line)
        ]
        if about:
            yield Drop(module, node, function, f"`{param.name}` is said to have no effect: {about[0].strip()[:80]}")
            continue
        yield Hit(
            module,
            node,
            function,
            f"`{function.name}` takes `{param.name}` and nothing in it reads it.",
            "likely",
            f"Honour `{param.name}`, or raise where it is not {default.value}.",
        )


def _literal_switch(module: Module, function: Function) -> Iterator[Seen]:
    """Literals for switches of a function that another call takes from its caller."""
    if function.owner is not None or _ONE_WAY.search(function.name):
        return
    if not any(_REGISTERED.search(name) for name, _ in function.decorators):
        return
    for call in function.calls:
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        target = module.by_qualname.get(name)
        bound = arguments(call, target) if target is not None and target is not function else None
        if target is None or bound is None or forwarded(function, bound) < LEAST_FORWARDED:
            continue
        for switch, value in bound.items():
            if (
                not (isinstance(value, ast.Constant) and isinstance(value.value, bool))
                or switch in function.param_names
            ):
                continue
            for other, twin in module.calls():
                if twin is call or not isinstance(twin.func, ast.Name) or twin.func.id != name or other is function:
                    continue
                others = arguments(twin, target) or {}
                theirs = others.get(switch)
                if theirs is None or isinstance(theirs, ast.Constant) or own_mode(bound, others):
                    continue
                if other is None or not chosen(other, function):
                    yield Hit(
                        module,
                        call,
                        function,
                        f"`{function.name}` always passes {value.value} for `{switch}` of `{name}`, "
                        f"elsewhere it is `{ast.unparse(theirs)}`.",
                        "likely",
                        f"Give `{function.name}` the parameter `{switch}` and pass it on.",
                        [Quote(module, twin, "the other call")],
                    )
                    break


class UnthreadedOption(Rule):
    """HZ402."""

    code = "HZ402"
    name = "unthreaded-option"
    stable = True
    triggers = ("triton", "tilelang", "cute", "cutlass", "cu_seqlens", "torch.library", "autograd.Function")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield options that get lost."""
        for function in module.functions:
            yield from _swallowed(module, function, project)
            yield from _reset(module, function)
            yield from _overwritten(module, function)
            yield from _unread(module, function, project)
            yield from _literal_switch(module, function)
        yield from lost(module, project)


RULE = UnthreadedOption()
