"""How the mutants of the gated delta rule are tried."""

from __future__ import annotations

from deltaproof.ops.registry import operator
from deltaproof.verify.expected import Reference
from deltaproof.verify.mutants.cheats import CHEATS
from deltaproof.verify.mutants.model import ModelBackend
from deltaproof.verify.mutants.naive import survives
from deltaproof.verify.mutants.remembered import RememberedReference
from deltaproof.verify.mutants.suite import Suite


def _reference() -> Reference:
    return RememberedReference(Reference(operator("gated_delta_rule")))


SUITE = Suite(ModelBackend, survives, "K = V, zero state, forward only, no padding", CHEATS, _reference)
