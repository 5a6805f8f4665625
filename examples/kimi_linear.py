"""Run a small Kimi Linear through transformers' own Kimi delta attention and ours, and print how far they differ.

    python examples/kimi_linear.py

The model is built from a configuration with random weights: nothing is downloaded. The exit status is 1 if a
difference is larger than rounding explains.
"""

from __future__ import annotations

import sys

from deltaproof.integrations.transformers_demo import as_table, run_demo

if __name__ == "__main__":
    rows = run_demo(seed=0, family="kimi_linear")
    print(as_table(rows))
    sys.exit(not all(row.passed for row in rows))
