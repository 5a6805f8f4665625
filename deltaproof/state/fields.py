"""What a slot holds: typed records of a pool's fields.

Shape legend: H query/key heads, HV value heads, K, V head sizes, C channels of a convolution, W its width in tokens, D
drafts a slot can hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from deltaproof.contracts.conventions import ConvLayout, StateLayout
from deltaproof.contracts.errors import ContractError
from deltaproof.ops.common.checks import MAX_DECODE_TOKENS
from deltaproof.ops.common.draft_checks import HALVES

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_SIZE = 256


def _check(name: str, dtype: object, **sizes: object) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise ContractError("name", "an identifier", repr(name))
    if dtype not in DTYPES:
        raise ContractError("dtype", f"one of {', '.join(map(str, DTYPES))}", dtype)
    for argument, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ContractError(argument, "a positive int", repr(size))


@dataclass(frozen=True)
class RecurrentField:
    """The state of a delta rule: a matrix a value head.

    Attributes:
        name: the field's name in its pool.
        heads: HV.
        K: key size, 1 to 256.
        V: value size, 1 to 256.
        dtype: float32, bfloat16 or float16.
        layout: k_first [HV, K, V] or v_first [HV, V, K]; where K = V no shape shows it.

    Raises:
        ContractError: an attribute is none of these.
    """

    name: str
    heads: int
    K: int
    V: int
    dtype: torch.dtype = torch.float32
    layout: StateLayout = StateLayout.K_FIRST

    def __post_init__(self) -> None:
        _check(self.name, self.dtype, heads=self.heads, K=self.K, V=self.V)
        for name in ("K", "V"):
            if getattr(self, name) > MAX_HEAD_SIZE:
                raise ContractError(name, f"at most {MAX_HEAD_SIZE}", getattr(self, name))
        object.__setattr__(self, "layout", _layout(StateLayout, self.layout))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one slot, [HV, K, V] or [HV, V, K]."""
        return (self.heads, *self.layout.inner_shape(self.K, self.V))

    @property
    def block(self) -> int:
        """Elements that lie side by side: one head's matrix."""
        return self.K * self.V


@dataclass(frozen=True)
class ConvField:
    """The window of a causal convolution: the last ``width - 1`` inputs of every channel.

    Attributes:
        name: the field's name in its pool.
        channels: C.
        width: W, the convolution's width in tokens, at least 2.
        dtype: float32, bfloat16 or float16.
        layout: channels_first [C, W - 1] or time_first [W - 1, C].

    Raises:
        ContractError: an attribute is none of these.
    """

    name: str
    channels: int
    width: int
    dtype: torch.dtype = torch.bfloat16
    layout: ConvLayout = ConvLayout.CHANNELS_FIRST

    def __post_init__(self) -> None:
        _check(self.name, self.dtype, channels=self.channels, width=self.width)
        if self.width < 2:
            raise ContractError("width", "at least 2, since the state holds width - 1 inputs", self.width)
        object.__setattr__(self, "layout", _layout(ConvLayout, self.layout))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one slot, [C, W - 1] or [W - 1, C]."""
        return self.layout.inner_shape(self.channels, self.width)

    @property
    def block(self) -> int:
        """Elements that lie side by side: the whole window."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Part:
    """One tensor of a draft field.

    Attributes:
        name: the field's name and the part's, with a dot between.
        shape: shape of one slot.
        dtype: its dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def block(self) -> int:
        """Elements that lie side by side: all of them."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class DraftField:
    """Inputs of a delta-rule layer's tokens that may be rejected, so that no state a token is kept.

    Attributes:
        name: the field's name in its pool.
        tokens: D, the most tokens a speculative step may have, 1 to 16.
        heads: H, of k.
        value_heads: HV, of v, g and beta.
        K: key size.
        V: value size.
        dtype: of k and v.
        gate_dtype: of g.
        beta_dtype: of beta.
        gate_per_channel: whether g is one number a channel of K (Kimi delta attention) and not one a head.

    Raises:
        ContractError: an attribute is none of these.
    """

    name: str
    tokens: int
    heads: int
    value_heads: int
    K: int
    V: int
    dtype: torch.dtype = torch.bfloat16
    gate_dtype: torch.dtype = torch.float32
    beta_dtype: torch.dtype = torch.float32
    gate_per_channel: bool = False

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("tokens", "heads", "value_heads", "K", "V")}
        for name in ("dtype", "gate_dtype", "beta_dtype"):
            _check(self.name, getattr(self, name), **sizes)
        for name, most in (("tokens", MAX_DECODE_TOKENS), ("K", MAX_HEAD_SIZE), ("V", MAX_HEAD_SIZE)):
            if getattr(self, name) > most:
                raise ContractError(name, f"at most {most}", getattr(self, name))
        if self.value_heads % self.heads:
            raise ContractError("value_heads", f"a multiple of heads = {self.heads}", self.value_heads)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What a slot holds: k, v, g and beta of each token, in two halves."""
        lead = (HALVES, self.tokens)
        return (
            Part(f"{self.name}.k", (*lead, self.heads, self.K), self.dtype),
            Part(f"{self.name}.v", (*lead, self.value_heads, self.V), self.dtype),
            Part(f"{self.name}.g", (*lead, self.value_heads, *((self.K,) * self.gate_per_channel)), self.gate_dtype),
            Part(f"{self.name}.beta", (*lead, self.value_heads), self.beta_dtype),
        )


@dataclass(frozen=True)
class ConvDraftField:
    """Inputs of a causal convolution's tokens that may be rejected.

    Attributes:
        name: the field's name in its pool.
        tokens: D, the most tokens a speculative step may have, 1 to 16.
        channels: C.
        dtype: of the inputs.

    Raises:
        ContractError: an attribute is none of these.
    """

    name: str
    tokens: int
    channels: int
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        _check(self.name, self.dtype, tokens=self.tokens, channels=self.channels)
        if self.tokens > MAX_DECODE_TOKENS:
            raise ContractError("tokens", f"at most {MAX_DECODE_TOKENS}", self.tokens)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What a slot holds: the inputs of each token, in two halves."""
        return (Part(f"{self.name}.x", (HALVES, self.tokens, self.channels), self.dtype),)


Field = RecurrentField | ConvField | DraftField | ConvDraftField
DRAFTS = (DraftField, ConvDraftField)


def _layout(kind: type[StateLayout] | type[ConvLayout], given: object) -> StateLayout | ConvLayout:
    try:
        return kind(given)
    except ValueError:
        raise ContractError("layout", f"one of {', '.join(x.value for x in kind)}", repr(given)) from None


def check_same(held: Field, wanted: Field) -> None:
    """Check that a kernel takes what a pool holds.

    Raises:
        ContractError: the records differ; the first attribute that does is named.
    """
    if type(held) is not type(wanted):
        raise ContractError("field", f"a {type(held).__name__}, as the pool's {held.name!r} is", type(wanted).__name__)
    for attribute in (item.name for item in fields(held)):
        has, takes = getattr(held, attribute), getattr(wanted, attribute)
        if has != takes:
            has, takes = (getattr(x, "value", x) for x in (has, takes))
            raise ContractError(attribute, f"{has}, as the pool's field {held.name!r} has it", takes)
