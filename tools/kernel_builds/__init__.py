"""Compiling every kernel for a GPU that is not there, and what the compiler says about each."""
