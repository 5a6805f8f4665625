"""How CuTe-DSL tensors are made: whether their strides are constants or of 32 bits, or symbols of 64 bits.

A stride that is a constant takes the width of the index it is multiplied by; a symbol made by ``from_dlpack`` or
``make_fake_compact_tensor`` has 64 bits unless 32 are asked for.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import arguments
from deltaproof.audit.flow.trace import called_name, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module

_FAKE = ("dtype", "shape", "stride")
_AROUND = re.compile(r"^(m|g)(?=[A-Z])|^(fake|cute|sym)_|_?(tensor|fake|cute|ct|t)?_?$")


def narrow_rows_of(module: Module, tensor: str) -> bool:
    """Return whether a module makes a tensor, given a kernel's name for it, with row strides of less than 64 bits.

    Where no tensor of that name is made, all that the module makes have to agree.
    """
    made = _made(module)
    own = [narrow for name, narrow in made if name and name == _core(tensor)]
    return any(own) if own else bool(made) and all(narrow for _, narrow in made)


def wide_rows_of(module: Module, tensor: str) -> bool:
    """Return whether a module makes a tensor of that name, each time with row strides of 64 bits."""
    own = [narrow for name, narrow in _made(module) if name and name == _core(tensor)]
    return bool(own) and not any(own)


def _core(name: str) -> str:
    return _AROUND.sub("", name).lower()


def _made(module: Module) -> list[tuple[str, bool]]:
    """Return the tensors of two and more dimensions that a module makes: name, and whether its rows are narrow."""
    known: list[tuple[str, bool]] | None = module.__dict__.get("_cute_tensors")
    if known is not None:
        return known
    found = []
    if "from_dlpack" in module.text or "make_fake" in module.text:
        for function in module.functions:
            for call in function.calls_of("from_dlpack", "make_fake_compact_tensor", "make_fake_tensor"):
                narrow = _is_narrow(function, call)
                if narrow is not None:
                    statement = function.statement(call)
                    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
                    found.append((_core(target.id) if isinstance(target, ast.Name) else "", narrow))
    module.__dict__["_cute_tensors"] = found
    return found


def _is_narrow(function: Function, call: ast.Call) -> bool | None:
    if any(each.arg == "use_32bit_stride" and isinstance(each.value, ast.Constant) for each in call.keywords):
        return True
    last = called_name(function, call).rpartition(".")[2]
    if last == "from_dlpack":
        around = function.parents.get(call)
        while isinstance(around, (ast.Attribute, ast.Call)):
            if isinstance(around, ast.Attribute) and around.attr == "mark_layout_dynamic":
                return False
            around = function.parents.get(around)
        name = function.statement(call)
        target = name.targets[0] if isinstance(name, ast.Assign) else None
        if isinstance(target, ast.Name):  # marked in a statement of its own
            marks = (each.func for each in function.calls if isinstance(each.func, ast.Attribute))
            if any(each.attr == "mark_layout_dynamic" and ast.unparse(each.value) == target.id for each in marks):
                return False
        return True
    given = arguments(call, _FAKE)
    shape, stride = given.get("shape"), given.get("stride")
    if not isinstance(shape, (ast.Tuple, ast.List)) or len(shape.elts) < 2:
        return None
    if last == "make_fake_tensor":
        first = stride.elts[0] if isinstance(stride, (ast.Tuple, ast.List)) and stride.elts else None
        return None if first is None else not _is_symbol(function, first, wide=True)
    return not any(_is_symbol(function, each) for each in shape.elts[1:])


def _is_symbol(function: Function, expr: ast.expr, wide: bool = False) -> bool:
    made = resolved(function, expr)
    last = called_name(function, made).rpartition(".")[2] if isinstance(made, ast.Call) else ""
    return last == "sym_int64" or (not wide and last.startswith("sym_int"))
