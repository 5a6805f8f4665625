"""The bench: workloads as data, floors and ceilings, timing, checks before timing, and the results as data."""
