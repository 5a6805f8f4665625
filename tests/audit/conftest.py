"""What the audit's tests share."""

from __future__ import annotations

import pytest

from deltaproof.audit import registry
from tests.audit.rule_for_tests import RULE


@pytest.fixture
def rule_for_tests_alone(monkeypatch):
    """The catalogue of rules holds the rule for tests and no other."""
    monkeypatch.setattr(registry, "all_rules", lambda: (RULE,))
