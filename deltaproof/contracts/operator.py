"""How an operator registers: one ``OPERATOR`` in ``deltaproof/ops/<name>/contract.py``, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SEQUENCE_FORMS = ("chunk", "recurrent")
POOL_FORMS = ("decode", "prefill")
FORMS = SEQUENCE_FORMS + POOL_FORMS


@dataclass(frozen=True)
class Operator:
    """One mathematical function and where its parts are found.

    Attributes:
        name: the operator's name, also its folder in ``ops``.
        title: one line for people.
        contract_version: version of the contract it is held to.
        forms: ways to compute it.
        gate_per_channel: g is [B, T, HV, K] rather than [B, T, HV].
        oracle: module with ``sequence``, ``decode`` and ``prefill`` in float64.
        backends: name -> "module:attribute", in the order in which selection prefers them.
        family: operators that take the same calls, and are seen by the same probes.
        chunk_states: whether form chunk can be asked for the state before each chunk.
        check: "module:function" of ``(operator, call, values)`` that holds a call to clause E1.
    """

    name: str
    title: str
    contract_version: int
    forms: tuple[str, ...]
    gate_per_channel: bool
    oracle: str
    backends: Mapping[str, str]
    family: str = "delta_rule"
    chunk_states: bool = False
    check: str = "deltaproof.ops.common.pool_checks:check_call"
