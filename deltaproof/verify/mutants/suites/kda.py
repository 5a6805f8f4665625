"""How the mutants of Kimi delta attention are tried."""

from __future__ import annotations

from deltaproof.ops.registry import operator
from deltaproof.verify.expected import Reference
from deltaproof.verify.mutants.kda import KdaModel
from deltaproof.verify.mutants.naive import survives
from deltaproof.verify.mutants.remembered import RememberedReference
from deltaproof.verify.mutants.suite import Suite


def _reference() -> Reference:
    return RememberedReference(Reference(operator("kda")))


SUITE = Suite(KdaModel, survives, "K = V, zero state, forward only, no padding", (), _reference)
