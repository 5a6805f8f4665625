"""Broken backends of the causal convolution, made from its torch backend."""
