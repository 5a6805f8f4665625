"""Delta-rule attention for PyTorch, with every kernel held to one written contract.

The public face, loaded on first use, so that ``import deltaproof`` itself needs no torch:

- ``chunk_gated_delta_rule``, ``fused_recurrent_gated_delta_rule``: whole sequences, chunked or token by token.
- ``gated_delta_rule_decode``, ``gated_delta_rule_prefill``: against a pool of states, updated in place.
- ``chunk_kda``, ``fused_recurrent_kda``, ``kda_decode``, ``kda_prefill``: the same of Kimi delta attention.
- ``causal_conv1d_update``, ``causal_conv1d_prefill``: the convolution before it, against a pool of windows.
- ``StatePool``: slots for the states of a model's requests, leased; its parts are in ``deltaproof.state``.
- ``StateLayout``: the order of a state's two inner dimensions.
- ``ContractError``: raised when an argument breaks the contract.
- ``__version__``: the installed version.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltaproof.contracts.conventions import StateLayout
    from deltaproof.contracts.errors import ContractError
    from deltaproof.operators.causal_conv1d import causal_conv1d_prefill, causal_conv1d_update
    from deltaproof.operators.gated_delta_rule import (
        chunk_gated_delta_rule,
        fused_recurrent_gated_delta_rule,
        gated_delta_rule_decode,
        gated_delta_rule_prefill,
    )
    from deltaproof.operators.kda import chunk_kda, fused_recurrent_kda, kda_decode, kda_prefill
    from deltaproof.state.pool import StatePool

    __version__: str

__all__ = [
    "ContractError",
    "StateLayout",
    "StatePool",
    "__version__",
    "causal_conv1d_prefill",
    "causal_conv1d_update",
    "chunk_gated_delta_rule",
    "chunk_kda",
    "fused_recurrent_gated_delta_rule",
    "fused_recurrent_kda",
    "gated_delta_rule_decode",
    "gated_delta_rule_prefill",
    "kda_decode",
    "kda_prefill",
]

_HOMES = {
    "ContractError": "deltaproof.contracts.errors",
    "StateLayout": "deltaproof.contracts.conventions",
    "StatePool": "deltaproof.state.pool",
    "causal_conv1d_prefill": "deltaproof.operators.causal_conv1d",
    "causal_conv1d_update": "deltaproof.operators.causal_conv1d",
    "chunk_gated_delta_rule": "deltaproof.operators.gated_delta_rule",
    "fused_recurrent_gated_delta_rule": "deltaproof.operators.gated_delta_rule",
    "gated_delta_rule_decode": "deltaproof.operators.gated_delta_rule",
    "gated_delta_rule_prefill": "deltaproof.operators.gated_delta_rule",
    **dict.fromkeys(("chunk_kda", "fused_recurrent_kda", "kda_decode", "kda_prefill"), "deltaproof.operators.kda"),
}


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("deltaproof")
    except PackageNotFoundError:
        return "0+unknown"


def _load(name: str, home: str) -> Any:
    try:
        return getattr(import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name == "torch":
            raise ImportError(
                f"deltaproof.{name} needs PyTorch, which is not installed: pip install 'deltaproof[torch]'"
            ) from error
        raise


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _HOMES:
        value = _load(name, _HOMES[name])
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
