"""Dataflow inside a function: which definitions reach a use, and what pointers and masks are made of."""
