"""Write one configuration a kernel for fla's configuration cache, so that nothing is autotuned.

A full tier of ``deltaproof verify --backend fla`` meets hundreds of sizes and options, and autotuning compiles every
kernel up to 27 times for each. With FLA_CACHE_MODE=default and FLA_CONFIG_DIR=FOLDER fla takes these instead: for each
kernel the one of its own candidates that needs least memory. Run it on the GPU that verifies: fla's candidates depend
on it. Kernels that fla does not keep in its cache are autotuned all the same.

    python tools/fla_configs.py FOLDER
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def cached_kernels() -> Iterator[Any]:
    """Yield every kernel of the imported package fla that looks into fla's configuration cache, once."""
    kind = importlib.import_module("fla.ops.utils.cache").CachedAutotuner
    for operator in ("gated_delta_rule", "kda"):
        importlib.import_module(f"fla.ops.{operator}")
    seen: set[int] = set()
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "fla":
            continue
        for kernel in list(vars(module).values()):
            while kernel is not None and not isinstance(kernel, (type, kind)):
                kernel = vars(kernel).get("fn") if hasattr(kernel, "__dict__") else None
            if isinstance(kernel, kind) and id(kernel) not in seen:
                seen.add(id(kernel))
                yield kernel


def smallest(configs: list[Any]) -> Any:
    """Return the candidate with the fewest stages and the smallest tiles, with four warps or as near as there is."""
    return min(configs, key=lambda c: (c.num_stages, math.prod(c.kwargs.values()), abs(c.num_warps - 4)))


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="folder to write NAME.json to, one a kernel")
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    kernels = list(cached_kernels())
    for kernel in kernels:
        best = smallest(kernel.configs)
        config = {
            "kwargs": dict(best.kwargs),
            "num_warps": best.num_warps,
            "num_stages": best.num_stages,
            "num_ctas": best.num_ctas,
            "maxnreg": best.maxnreg,
        }
        text = json.dumps({"kernel_name": kernel.kernel_name, "default_config": config}, indent=2)
        (folder / f"{kernel.kernel_name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"wrote {len(kernels)} configurations to {folder}")
    return 0 if kernels else 1


if __name__ == "__main__":
    sys.exit(main())
