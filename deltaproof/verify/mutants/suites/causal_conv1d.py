"""How the mutants of the causal convolution are tried."""

from __future__ import annotations

from deltaproof.verify.mutants.conv.cheats import CHEATS
from deltaproof.verify.mutants.conv.model import ConvModel
from deltaproof.verify.mutants.conv.naive import survives
from deltaproof.verify.mutants.suite import Suite

SUITE = Suite(ConvModel, survives, "W = 4, zero windows, whole rows, one dtype, no padding", CHEATS)
