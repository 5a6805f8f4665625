"""Triton's interpreter, which runs kernels on the CPU: switching it on, whether it can run here, and making it faster.

Importing this imports no triton: the interpreter has to be asked for before triton is imported.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

VARIABLE = "TRITON_INTERPRET"
NUMPY_END, TRITON_START = (2, 4), (3, 7, 1)
"""From this numpy on the interpreter needs this triton: older ones turn one-element arrays into numbers."""
HURRIED = ("3.5", "3.6", "3.7")
"""Versions of triton that ``hurry`` was held against; others run as they are."""


def switch_on() -> None:
    """Have kernels interpreted in this process, unless the environment says already whether they are.

    Warnings about infinities and rows of NaN, which kernels may well compute with, are left out.

    Raises:
        RuntimeError: triton is imported already, so it is too late.
    """
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"triton\.runtime\.interpreter")
    if VARIABLE in os.environ:
        return
    if "triton" in sys.modules:
        raise RuntimeError(f"triton is imported already: set {VARIABLE}=1 before the process starts")
    os.environ[VARIABLE] = "1"


def why_not(numpy: str | None = None, triton: str | None = None) -> str | None:
    """Return why the interpreter cannot run kernels here, and what to install; None if it can.

    Args:
        numpy: version to judge; the installed one by default.
        triton: version to judge; the installed one by default.
    """
    try:
        triton = triton or _triton()
        numpy = numpy or version("numpy")
    except (ImportError, PackageNotFoundError) as error:
        return f"Triton's interpreter needs triton and numpy: {error}"
    if _numbers(numpy) < NUMPY_END or _numbers(triton) >= TRITON_START:
        return None
    end, start = (".".join(map(str, numbers)) for numbers in (NUMPY_END, TRITON_START))
    return (
        f"the interpreter of triton {triton} cannot take numpy {numpy}: "
        f"pip install 'numpy<{end}', or triton>={start}"
    )  # fmt: skip


def _triton() -> str:
    import triton

    return str(triton.__version__)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


_hurried = False


def hurry() -> bool:
    """Leave out what the interpreter does again and again to the same end; return whether it is left out.

    What kernels compute stays the same, bit for bit. A version of triton that is not among ``HURRIED`` is left as it
    is.
    """
    global _hurried
    if _hurried or not _triton().startswith(tuple(f"{known}." for known in HURRIED)):
        return _hurried
    from triton.language import core, semantic
    from triton.runtime import interpreter

    _patch_once_a_launch(interpreter)
    _make_types_once(core, interpreter)
    _leave_equal_operands(core, semantic)
    _hurried = True
    return True


def _patch_once_a_launch(interpreter: Any) -> None:
    """Patch the language once a launch for each file of kernels, not at every call of one kernel by another."""
    patch: Callable[[Any], Any] = interpreter._patch_lang
    launch: Callable[..., Any] = interpreter.GridExecutor.__call__
    seen: list[set[int]] = []

    def launch_and_remember(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(set())
        try:
            return launch(self, *args, **kwargs)
        finally:
            seen.pop()

    def patch_unseen(fn: Any) -> Any:
        # what is patched depends on nothing but the file's globals
        file = id(fn.__globals__)
        if seen and file in seen[-1]:
            return None
        if seen:
            seen[-1].add(file)
        return patch(fn)

    interpreter.GridExecutor.__call__ = launch_and_remember
    interpreter._patch_lang = patch_unseen


def _make_types_once(core: Any, interpreter: Any) -> None:
    """Keep what follows from a type alone: every value that a kernel computes is a new object with its type's shape."""
    make_type: Callable[..., None] = core.block_type.__init__
    make_value: Callable[..., None] = core.tensor.__init__
    same: Callable[[Any, Any], Any] = core.tuple.__eq__
    numpy_type: Callable[[Any], Any] = interpreter._get_np_dtype
    true = core.constexpr(True)
    types: dict[tuple[int, tuple[int, ...]], dict[str, Any]] = {}
    many = 4096

    def type_init(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([size.value if isinstance(size, core.constexpr) else size for size in shape])
        key = id(element_ty), sizes
        known = types.get(key)
        if known is None:
            make_type(self, element_ty, shape)
            self.__dict__.update(_of_values={}, _sizes=sizes)
            if len(types) >= many:  # pointers have types of their own at every launch
                types.clear()
            # holds the element type too, so its id is not used again
            types[key] = dict(self.__dict__)
        else:
            self.__dict__.update(known)

    def value_init(self: Any, handle: Any, type: Any) -> None:
        known = type.__dict__.setdefault("_of_values", {})
        if known:
            self.__dict__.update(known)
            self.handle, self.type = handle, type
        else:
            make_value(self, handle, type)
            known.update((name, x) for name, x in self.__dict__.items() if name not in ("handle", "type"))

    def tuple_eq(self: Any, other: Any) -> Any:
        if self is other:
            return true
        if isinstance(other, list) and all(type(x) is int for x in other):
            return core.constexpr(self.values == other)
        return same(self, other)

    def kept_numpy_type(tt_dtype: Any) -> Any:
        found = tt_dtype.__dict__.get("_numpy")
        if found is None:
            found = tt_dtype.__dict__["_numpy"] = numpy_type(tt_dtype)
        return found

    core.block_type.__init__ = type_init
    core.tensor.__init__ = value_init
    core.tuple.__eq__ = tuple_eq
    interpreter._get_np_dtype = kept_numpy_type


def _leave_equal_operands(core: Any, semantic: Any) -> None:
    """Do not ask how two operands of one type, or of one shape, are to be made alike; needs ``_make_types_once``."""
    convert: Callable[..., Any] = semantic.TritonSemantic.binary_op_type_checking_impl
    broadcast: Callable[[Any, Any, Any], Any] = semantic.TritonSemantic.broadcast_impl_value

    def convert_unequal(
        self: Any,
        lhs: Any,
        rhs: Any,
        allow_lhs_ptr: bool = False,
        allow_rhs_ptr: bool = False,
        arithmetic_check: bool = True,
        div_or_mod: bool = False,
    ) -> Any:
        if type(lhs) is core.tensor and type(rhs) is core.tensor and not div_or_mod:
            one, other = lhs.type, rhs.type
            equal = one is other or (one.is_block() and one.__dict__["_of_values"] is other.__dict__.get("_of_values"))
            if equal and not one.scalar.is_ptr():
                return lhs, rhs
        return convert(self, lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)

    def broadcast_unequal(self: Any, lhs: Any, rhs: Any) -> Any:
        sizes = lhs.type.__dict__.get("_sizes")
        if sizes is not None and sizes == rhs.type.__dict__.get("_sizes"):
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    semantic.TritonSemantic.binary_op_type_checking_impl = convert_unequal
    semantic.TritonSemantic.broadcast_impl_value = broadcast_unequal
