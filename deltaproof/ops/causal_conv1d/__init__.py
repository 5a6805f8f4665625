"""The causal convolution over tokens, against a pool of windows."""
