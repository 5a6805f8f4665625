"""One public bug as source, before and after its fix, for the demo: text to be read, never imported.

Written after fla-org/flash-linear-attention #1135: the gate of a recurrent kernel was loaded over K rounded up to a
power of two without a mask, while q and k had one.
"""
