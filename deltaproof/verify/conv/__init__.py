"""Cases, inputs and judgement for the causal convolution; its probes are in ``deltaproof.verify.probes.conv_*``."""
