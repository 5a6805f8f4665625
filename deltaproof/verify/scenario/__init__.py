"""Scenarios: a small engine that serves a small model, with faults as they were found in public."""
