"""One module an operator, named after it: its ``SUITE``."""
