"""Kimi delta attention: contract, oracle and implementations."""
