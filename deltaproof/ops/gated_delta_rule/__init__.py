"""The gated delta rule: contract, oracle and implementations."""
