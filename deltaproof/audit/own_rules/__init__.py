"""Rules of the ignore comments themselves; they are selected and ignored like others."""

from __future__ import annotations

from deltaproof.audit.own_rules.invalid_suppression import RULE as INVALID
from deltaproof.audit.own_rules.unused_suppression import RULE as UNUSED
from deltaproof.audit.rule import Rule

__all__ = ["INVALID", "OWN_RULES", "UNUSED"]

OWN_RULES: tuple[Rule, ...] = (UNUSED, INVALID)
