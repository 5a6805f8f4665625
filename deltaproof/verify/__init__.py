"""The harness that holds a backend to the contract."""
