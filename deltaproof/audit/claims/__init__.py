"""Checking somebody else's report: does the code that it quotes exist?"""

from __future__ import annotations

from deltaproof.audit.claims.check import check_claims
from deltaproof.audit.claims.command import run_claims
from deltaproof.reports.claims import exit_code

__all__ = ["check_claims", "exit_code", "run_claims"]
