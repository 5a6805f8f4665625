"""Run a small Qwen3-Next through transformers' own gated delta rule and through ours, and print how far they differ.

    python examples/qwen3_next.py

The model is built from a configuration with random weights: nothing is downloaded. The exit status is 1 if a
difference is larger than rounding explains.
"""

from __future__ import annotations

import sys

from deltaproof.integrations.qwen3_next_demo import run_demo


def main() -> int:
    """Print one line a comparison; differences are shares of the largest value of transformers' result."""
    rows = run_demo(seed=0)
    print(f"{'comparison':20}{'difference':>12}{'tolerance':>12}{'tokens':>10}{'calls':>7}{'seconds':>9}")
    for row in rows:
        tokens = {None: "-", True: "equal", False: "DIFFER"}[row.tokens_equal]
        print(
            f"{row.name:20}{row.difference:12.1e}{row.tolerance:12.1e}{tokens:>10}{row.calls:7}{row.seconds:9.2f}"
            + ("" if row.passed else "   FAILED")
        )
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
