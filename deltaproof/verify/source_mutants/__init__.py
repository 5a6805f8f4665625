"""Generated mutants of the kernels' own source: small slips, one at a time, that `verify` must notice."""
