"""One function: decorators, parameters, nodes in order, calls, and what kind of kernel it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from deltaproof.audit.model.names import dotted

if TYPE_CHECKING:
    from deltaproof.audit.flow.definitions import Definitions
    from deltaproof.audit.model.module import Module

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
KINDS = {
    "triton.jit": "triton",
    "triton.runtime.jit": "triton",
    "gluon.jit": "gluon",
    "cute.kernel": "cute",
    "cute.jit": "cute",
    "T.prim_func": "tilelang",
    "language.prim_func": "tilelang",
    "tilelang.jit": "tilelang",
    "T.macro": "tilelang",
    "language.macro": "tilelang",
}
"""How a decorator's dotted name ends → the language of the kernel."""

Node = TypeVar("Node", bound=ast.AST)
_OWN = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)  # functions and classes of their own
_NO_NODES = ("ctx", "op", "ops", "id", "attr", "kind", "type_comment")
_CHILDREN: dict[type, tuple[str, ...]] = {
    kind: () if issubclass(kind, (*_OWN, ast.Constant)) else tuple(f for f in kind._fields[::-1] if f not in _NO_NODES)
    for kind in vars(ast).values()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}
"""Type of a node → its fields that may hold nodes, the last one first."""


@dataclass(frozen=True)
class Param:
    """One parameter.

    Attributes:
        name: its name.
        annotation: its source text, empty where there is none.
        default: the default's expression, or None.
        constexpr: whether it is a compile-time constant of a kernel.
    """

    name: str
    annotation: str
    default: ast.expr | None
    constexpr: bool


@dataclass(frozen=True)
class Launch:
    """A call ``kernel[grid](...)``.

    Attributes:
        host: the function that launches.
        call: the call.
        kernel: the expression before the brackets.
        name: its dotted name, aliases followed.
        grid: the expression inside the brackets.
    """

    host: Function
    call: ast.Call
    kernel: ast.expr
    name: str
    grid: ast.expr

    def bound(self, kernel: Function) -> dict[str, ast.expr]:
        """Return the launch's arguments by the kernel's parameter names; starred ones are left out."""
        found: dict[str, ast.expr] = {}
        names = [param.name for param in kernel.params]
        for name, argument in zip(names, self.call.args, strict=False):
            if isinstance(argument, ast.Starred):
                break
            found[name] = argument
        for keyword in self.call.keywords:
            if keyword.arg is not None:
                found[keyword.arg] = keyword.value
        return found


class Function:
    """A function of a module.

    Attributes:
        module: the module.
        node: its definition.
        qualname: with the classes and functions around it.
        owner: the class whose body it stands in.
        outer: the function it is nested in.
    """

    def __init__(
        self, module: Module, node: FunctionNode, qualname: str, owner: ast.ClassDef | None, outer: Function | None
    ) -> None:
        self.module = module
        self.node = node
        self.qualname = qualname
        self.owner = owner
        self.outer = outer

    def __repr__(self) -> str:
        return f"Function({self.module.path}:{self.line} {self.qualname})"

    @property
    def name(self) -> str:
        """Return the bare name."""
        return self.node.name

    @property
    def line(self) -> int:
        """Return the line of ``def``."""
        return self.node.lineno

    @property
    def end_line(self) -> int:
        """Return the last line."""
        return self.node.end_lineno or self.node.lineno

    @cached_property
    def decorators(self) -> list[tuple[str, ast.expr]]:
        """Decorators from the top: dotted name (of the function where one is called) and expression."""
        found = []
        for expr in self.node.decorator_list:
            target = expr.func if isinstance(expr, ast.Call) else expr
            found.append((self.module.resolve(target) or dotted(target), expr))
        return found

    def decorator(self, ending: str) -> ast.Call | None:
        """Return the call of the decorator whose dotted name ends so, such as "autotune"; None if there is none."""
        for name, expr in self.decorators:
            if isinstance(expr, ast.Call) and (name == ending or name.endswith(f".{ending}")):
                return expr
        return None

    @cached_property
    def kind(self) -> str:
        """ "triton", "gluon", "cute", "tilelang", or "" for a host function."""
        for name, _ in self.decorators:
            for ending, kind in KINDS.items():
                if name == ending or name.endswith(f".{ending}"):
                    return kind
        return ""

    @property
    def is_kernel(self) -> bool:
        """Return whether it runs on a device."""
        return bool(self.kind)

    @cached_property
    def params(self) -> list[Param]:
        """Parameters in order, ``*args`` and ``**kwargs`` left out."""
        arguments = self.node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(
            arguments.defaults
        )
        pairs = [
            *zip(positional, defaults, strict=True),
            *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
        ]
        found = []
        for argument, default in pairs:
            text = ast.unparse(argument.annotation) if argument.annotation is not None else ""
            found.append(Param(argument.arg, text, default, "constexpr" in text))
        return found

    @cached_property
    def param_names(self) -> frozenset[str]:
        """Names of all parameters."""
        return frozenset(param.name for param in self.params)

    @cached_property
    def constexprs(self) -> frozenset[str]:
        """Names of the compile-time constants among the parameters."""
        return frozenset(param.name for param in self.params if param.constexpr)

    @cached_property
    def docstring_lines(self) -> range:
        """Lines of the docstring; empty where there is none."""
        first = self.node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            return range(first.lineno, (first.end_lineno or first.lineno) + 1)
        return range(0)

    @cached_property
    def _walked(self) -> tuple[list[ast.AST], dict[ast.AST, ast.AST]]:
        order: list[ast.AST] = []
        parents: dict[ast.AST, ast.AST] = {}
        stack: list[ast.AST] = list(reversed(self.node.body))
        for statement in self.node.body:
            parents[statement] = self.node
        while stack:
            node = stack.pop()
            order.append(node)
            for field in _CHILDREN[type(node)]:
                value = getattr(node, field, None)
                if isinstance(value, list):
                    for child in reversed(value):
                        if isinstance(child, ast.AST):
                            parents[child] = node
                            stack.append(child)
                elif isinstance(value, ast.AST):
                    parents[value] = node
                    stack.append(value)
        return order, parents

    @property
    def nodes(self) -> list[ast.AST]:
        """Return the nodes of the body in source order, without those of nested functions, operators and contexts."""
        return self._walked[0]

    @cached_property
    def _by_type(self) -> dict[type[ast.AST], list[ast.AST]]:
        found: dict[type[ast.AST], list[ast.AST]] = {}
        for node in self._walked[0]:
            found.setdefault(type(node), []).append(node)
        return found

    def of_type(self, kind: type[Node]) -> list[Node]:
        """Return the nodes of one type in source order."""
        return self._by_type.get(kind, [])  # type: ignore[return-value]

    @property
    def parents(self) -> dict[ast.AST, ast.AST]:
        """Return every node's parent."""
        return self._walked[1]

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield the nodes around one, innermost first, the function's definition last."""
        parents = self.parents
        while node in parents:
            node = parents[node]
            yield node

    def statement(self, node: ast.AST) -> ast.stmt:
        """Return the statement that holds a node."""
        if isinstance(node, ast.stmt):
            return node
        return next((around for around in self.ancestors(node) if isinstance(around, ast.stmt)), self.node)

    @cached_property
    def calls(self) -> list[ast.Call]:
        """Every call in source order."""
        return self.of_type(ast.Call)

    def called(self, call: ast.Call) -> str:
        """Return the dotted name of what is called, aliases followed; "" where it is no name."""
        return self.module.resolve(call.func)

    def calls_of(self, *endings: str) -> list[ast.Call]:
        """Return the calls whose dotted name is one of these, or ends with one after a dot."""
        found = []
        for call in self.calls:
            name = self.called(call) or (call.func.attr if isinstance(call.func, ast.Attribute) else "")
            if any(name == ending or name.endswith(f".{ending}") for ending in endings):
                found.append(call)
        return found

    @cached_property
    def launches(self) -> list[Launch]:
        """Calls ``kernel[grid](...)``."""
        return [
            Launch(self, call, call.func.value, self.module.resolve(call.func.value), call.func.slice)
            for call in self.calls
            if isinstance(call.func, ast.Subscript) and dotted(call.func.value)
        ]

    @cached_property
    def flow(self) -> Definitions:
        """Which definitions reach which use."""
        from deltaproof.audit.flow.definitions import Definitions

        return Definitions(self)
