"""An interpreter of Gluon: runs a kernel's source on the CPU, program after program, with torch in the GPU's place.

Triton's interpreter knows no Gluon. Here a kernel's Python function runs as it stands, in a namespace in which ``gl``,
``tl`` and what Hopper adds to them are the functions of this file. Layouts mean nothing here, nor do fences and
barriers, so a wrong one goes unseen. All else is what the GPU does, and stricter: every access to memory lies inside
its tensor's; what an asynchronous copy asks for comes when it is waited for and not before; a product reads shared
memory when it is waited for, and cannot be used before; shared memory holds NaN until it is written.
"""

from __future__ import annotations

import builtins
import math
import types
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import torch
import triton.language as tl
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.experimental.gluon.language.nvidia import ampere, hopper
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from deltaproof.ops.common import gluon_barriers

DTYPES = ("float32", "float64", "bfloat16", "float16", "int32", "int64", "int16", "int8")


class ElementType:
    """The dtype of what a pointer points to."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.primitive_bitwidth = dtype, 8 * dtype.itemsize

    def __eq__(self, other: Any) -> bool:
        return self.dtype == _dtype(other)

    def __hash__(self) -> int:
        return hash(self.dtype)


def _dtype(x: Any) -> torch.dtype:
    found: torch.dtype = x.dtype if isinstance(x, ElementType) else x
    return found


class Values(torch.Tensor):
    """A tensor with the methods of Triton's: ``to`` can take the bits as they are, ``split`` halves the last axis."""

    def to(self, dtype: Any, bitcast: bool = False) -> Any:  # type: ignore[override]
        return self.view(_dtype(dtype)) if bitcast else super().to(_dtype(dtype))

    def split(self) -> Any:  # type: ignore[override]
        return tuple(_values(x) for x in self.unbind(-1))


def _values(x: Any) -> Any:
    return x.as_subclass(Values) if isinstance(x, torch.Tensor) else x


class Pointer:
    """Elements of a tensor: its memory, and the place of each from its start."""

    def __init__(self, memory: torch.Tensor, at: Any = 0) -> None:
        self.memory, self.at = memory, at

    @property
    def dtype(self) -> Any:
        return types.SimpleNamespace(element_ty=ElementType(self.memory.dtype))

    def __add__(self, by: Any) -> Pointer:
        return Pointer(self.memory, self.at + by)

    __radd__ = __add__

    def __sub__(self, by: Any) -> Pointer:
        return self + -by

    def places(self, mask: Any, shape: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        at = torch.as_tensor(self.at, dtype=torch.int64)
        inside = torch.as_tensor(True if mask is None else mask)
        shape = torch.broadcast_shapes(at.shape, inside.shape, *([] if shape is None else [shape]))
        at, inside = at.expand(shape), inside.expand(shape)
        used = at[inside]
        if used.numel() and not (int(used.min()) >= 0 and int(used.max()) < self.memory.numel()):
            raise IndexError(f"places {int(used.min())} to {int(used.max())} of {self.memory.numel()}")
        return at, inside

    def read(self, at: torch.Tensor, inside: torch.Tensor, other: float) -> torch.Tensor:
        found = torch.full(at.shape, other, dtype=self.memory.dtype)
        found[inside] = self.memory[at[inside]]
        return found


class Pending:
    """A product that has not been waited for."""

    def __init__(self, compute: Callable[[], torch.Tensor]) -> None:
        self.compute = compute
        self.value: torch.Tensor | None = None

    def _early(self, *_: Any) -> Any:
        raise AssertionError("a product was used before it was waited for")

    __getattr__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __neg__ = __getitem__ = _early


class Shared:
    """A tile of shared memory."""

    def __init__(self, tile: torch.Tensor) -> None:
        self.tile = tile

    @property
    def shape(self) -> list[int]:
        return list(self.tile.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tile.dtype

    def load(self, layout: Any) -> torch.Tensor:
        return _values(self.tile.clone())

    def store(self, value: torch.Tensor) -> None:
        assert value.dtype == self.tile.dtype, (value.dtype, self.tile.dtype)
        assert value.shape == self.tile.shape, (value.shape, self.tile.shape)
        self.tile.copy_(value)

    def index(self, i: Any) -> Shared:
        assert 0 <= int(i) < self.tile.shape[0], (int(i), self.tile.shape)
        return Shared(self.tile[int(i)])

    def slice(self, start: int, length: int, dim: int = 0) -> Shared:
        assert start >= 0 and start + length <= self.tile.shape[dim], (start, length, self.tile.shape)
        return Shared(self.tile.narrow(dim, start, length))

    def permute(self, order: list[int]) -> Shared:
        return Shared(self.tile.permute(*order))

    def reshape(self, shape: list[int]) -> Shared:
        return Shared(self.tile.view(shape))

    def _reinterpret(self, dtype: Any, shape: list[int], layout: Any) -> Shared:
        tile = self.tile.view(_dtype(dtype))
        if tile.element_size() == 2 and tile.shape[-1] == 64 < shape[-1]:
            return Blocks(tile.view(*shape[:-2], shape[-1] // 64, shape[-2], 64).transpose(-3, -2))
        return Shared(tile.view(shape))


class Blocks(Shared):
    """A tile of numbers of two bytes, wider than 64, that is copied to what narrow ones are read from.

    Blocks of 64 columns, 128 bytes, lie one behind the other; ``tile`` has their number before their columns.
    """

    @property
    def shape(self) -> list[int]:
        return [*self.tile.shape[:-2], 64 * self.tile.shape[-2]]

    def index(self, i: Any) -> Shared:
        return Blocks(super().index(i).tile)


class Machine:
    """What runs one program at a time: its number, and what was asked for and has not come."""

    def __init__(self, programs: int) -> None:
        self.program, self.programs = 0, programs
        self.asked: list[Callable[[], None]] = []
        self.groups: list[list[Callable[[], None]]] = []
        self.products: list[Pending] = []
        self.barriers = gluon_barriers.Barriers()

    def copy(self, tile: Shared, pointer: Pointer, mask: Any = None) -> None:
        at, inside = pointer.places(mask, tile.tile.shape)
        assert at.shape == tile.tile.shape, (at.shape, tile.tile.shape)
        tile.tile.fill_(math.nan)

        def arrive() -> None:
            tile.tile.copy_(pointer.read(at, inside, 0))

        self.asked.append(arrive)

    def commit(self) -> None:
        self.groups.append(self.asked)
        self.asked = []

    def wait_copies(self, left: int = 0) -> None:
        while len(self.groups) > left:
            for arrive in self.groups.pop(0):
                arrive()

    def product(self, a: Any, b: Any, acc: torch.Tensor, use_acc: bool = True, is_async: bool = False) -> Any:
        def compute() -> torch.Tensor:
            left, right = (x.tile if isinstance(x, Shared) else x for x in (a, b))
            assert left.dtype == right.dtype and acc.shape == (*left.shape[:-1], right.shape[-1])
            found = left.float() @ right.float()
            return _values(found + acc if use_acc else found)

        if not is_async:
            return compute()
        self.products.append(Pending(compute))
        return self.products[-1]

    def wait_products(self, left: int = 0, deps: Any = ()) -> Any:
        while len(self.products) > left:
            one = self.products.pop(0)
            one.value = one.compute()
        found = []
        for x in deps:
            assert not isinstance(x, Pending) or x.value is not None, "waited for too few products"
            found.append(x.value if isinstance(x, Pending) else x)
        return found[0] if len(found) == 1 else tuple(found)


def _flushed(x: torch.Tensor) -> torch.Tensor:
    """Return x with 0 for what is no normal number."""
    return torch.where(x.abs() < torch.finfo(torch.float32).tiny, 0.0 * x.sign(), x)


ASSEMBLY: dict[str, Callable[..., torch.Tensor]] = {
    "ex2.approx.ftz.f32 $0, $1;": lambda x: _flushed(torch.exp2(_flushed(x))),
    "lg2.approx.ftz.f32 $0, $1;": lambda x: torch.log2(_flushed(x)),
    "rcp.approx.ftz.f32 $0, $1;": lambda x: _flushed(1 / _flushed(x)),
}
"""What instructions that kernels name themselves compute."""


def _load(pointer: Pointer, mask: Any = None, other: Any = 0, **more: Any) -> torch.Tensor:
    return _values(pointer.read(*pointer.places(mask), other))


def _store(pointer: Pointer, value: Any, mask: Any = None) -> None:
    value = torch.as_tensor(value)
    at, inside = pointer.places(mask, value.shape)
    pointer.memory[at[inside]] = value.expand(at.shape)[inside].to(pointer.memory.dtype)


def _scan(x: torch.Tensor, axis: int, combine: Callable[[Any, Any], Any]) -> torch.Tensor:
    rows = list(x.unbind(axis))
    for i in range(1, len(rows)):
        rows[i] = combine(rows[i - 1], rows[i])
    return torch.stack(rows, axis)


def _pairwise(function: Callable[..., torch.Tensor]) -> Callable[[Any, Any], torch.Tensor]:
    def call(a: Any, b: Any) -> torch.Tensor:
        like = a if isinstance(a, torch.Tensor) else b
        a, b = (x if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=like.dtype) for x in (a, b))
        return function(a, b)

    return call


def _where(condition: Any, a: Any, b: Any) -> torch.Tensor:
    dtypes = [x.dtype for x in (a, b) if isinstance(x, torch.Tensor)]
    dtype = reduce(torch.promote_types, dtypes) if dtypes else None
    a, b = (x if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=dtype) for x in (a, b))
    return torch.where(torch.as_tensor(condition), a, b)


def _unwritten(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, math.nan if dtype.is_floating_point else torch.iinfo(dtype).min, dtype=dtype)


def _language(machine: Machine) -> Any:
    """Return what a kernel finds under ``gl`` and ``tl``."""
    anything = types.SimpleNamespace(with_identity_for=lambda *_, **__: None)
    layouts = {name: (lambda *_, **__: None) for name in dir(gl) if name.endswith("Layout")}
    return types.SimpleNamespace(
        int1=torch.bool,
        **{name: getattr(torch, name) for name in DTYPES},
        **{**layouts, "PaddedSharedLayout": anything},
        constexpr=lambda x: x,
        program_id=lambda axis: torch.tensor(machine.program, dtype=torch.int32),
        num_programs=lambda axis: torch.tensor(machine.programs, dtype=torch.int32),
        arange=lambda start, end, layout=None: _values(torch.arange(start, end, dtype=torch.int32)),
        zeros=lambda shape, dtype, layout=None: _values(torch.zeros(shape, dtype=_dtype(dtype))),
        full=lambda shape, value, dtype, layout=None: _values(torch.full(shape, value, dtype=_dtype(dtype))),
        inline_asm_elementwise=lambda text, constraints, arguments, **more: ASSEMBLY[text](*arguments),
        load=_load,
        store=_store,
        where=_where,
        exp=lambda x: torch.exp(torch.as_tensor(x)),
        exp2=lambda x: torch.exp2(torch.as_tensor(x)),
        log=torch.log,
        log2=torch.log2,
        abs=torch.abs,
        sqrt=torch.sqrt,
        rsqrt=torch.rsqrt,
        maximum=_pairwise(torch.maximum),
        minimum=_pairwise(torch.minimum),
        sum=lambda x, axis: x.sum(axis),
        reduce_or=lambda x, axis: reduce(torch.bitwise_or, x.unbind(axis)),
        min=lambda x, axis: x.amin(axis),
        max=lambda x, axis: x.amax(axis),
        associative_scan=_scan,
        thread_barrier=lambda: None,
        convert_layout=lambda x, layout, assert_trivial=False: x,
        join=lambda a, b: _values(torch.stack((a, b), -1)),
        broadcast=lambda a, b: torch.broadcast_tensors(a, b),
        static_range=range,
        cdiv=lambda a, b: -(-a // b),
        allocate_shared_memory=lambda dtype, shape, layout, value=None: Shared(
            _unwritten(shape, _dtype(dtype)) if value is None else value.clone()
        ),
    )


def _functions(machine: Machine) -> Callable[[Any], Callable[..., Any]]:
    """Return what makes a jitted function one that runs here."""
    language = _language(machine)
    copies = types.SimpleNamespace(
        async_copy_global_to_shared=machine.copy, commit_group=machine.commit, wait_group=machine.wait_copies
    )
    mbarrier, tma = gluon_barriers.language(lambda: machine.barriers)
    stand_ins: list[tuple[Any, Any]] = [
        (gl, language),
        (tl, language),
        (async_copy, copies),
        (hopper.mbarrier, mbarrier),
        (hopper.tma, tma),
        (hopper.fence_async_shared, lambda: None),
        (hopper.warpgroup_mma, machine.product),
        (hopper.warpgroup_mma_wait, machine.wait_products),
        (ampere.mma_v2, machine.product),
    ]
    # by identity: a function's own hash is that of what it compiles to
    made: dict[int, Callable[..., Any]] = {}

    def function_of(kernel: Any) -> Callable[..., Any]:
        if id(kernel) in made:
            return made[id(kernel)]
        namespace = dict(vars(builtins))
        function = types.FunctionType(kernel.fn.__code__, namespace, kernel.fn.__name__, kernel.fn.__defaults__)
        made[id(kernel)] = function
        for name, x in kernel.fn.__globals__.items():
            found = next((stand_in for what, stand_in in stand_ins if x is what), x)
            if isinstance(x, (JITFunction, InterpretedFunction)):
                found = function_of(x)
            elif isinstance(x, tl.constexpr):
                found = x.value
            namespace[name] = found
        return function

    return function_of


def order(programs: int) -> Iterable[int]:
    """Return a launch's programs in the order in which they run; tests put another in its place."""
    return range(programs)


def launch(kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Run a kernel's programs, one after another.

    Args:
        kernel: a function made by ``gluon.jit``.
        programs: how many there are.
        arguments: tensors, descriptors and numbers, in the kernel's order.
        constants: its constants by name; options of the launch among them are left out.

    Raises:
        IndexError: a program left a tensor's memory.
        AssertionError: it used what it had not waited for, or stored a tile of another shape or dtype.
    """
    given = [_argument(x) for x in arguments]
    names = {name: x for name, x in constants.items() if name in kernel.arg_names}
    machine = Machine(programs)
    run = _functions(machine)(kernel)
    for machine.program in order(programs):
        machine.barriers = gluon_barriers.Barriers()
        run(*given, **names)
        assert not machine.products, "a product was never waited for"
        assert not (machine.asked or machine.groups or machine.barriers.left()), "a copy was never waited for"


def _argument(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        # views of a pool reach beyond their own elements, so what may be touched is the storage from here on
        count = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
        return Pointer(torch.as_strided(x.detach(), (count,), (1,)))
    if isinstance(x, TensorDescriptor):
        return gluon_barriers.Block(x, ElementType(x.base.dtype))
    if not isinstance(x, int) or isinstance(x, bool):
        return x
    # as a launch types them
    return torch.tensor(x, dtype=torch.int32 if -(2**31) <= x < 2**31 else torch.int64)


def switch_on() -> None:
    """Have every launch of a Gluon kernel in this process run here."""

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        launch(self, grid[0], arguments, constants)

    GluonJITFunction.run = run  # type: ignore[method-assign]
