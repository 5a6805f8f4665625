"""Random numbers that ranks must share, and do not.

## What it does
Reports a seed that is derived from the rank, and, in code that samples or verifies tokens under tensor parallelism,
a draw from the default generator whose result no collective makes equal.

## Why it matters
Every tensor-parallel rank holds a part of the weights of one model. If the ranks sample other tokens, or unmask other
positions, each goes on with another sequence: the next all-reduce adds up numbers that belong to different inputs, and
nothing fails.

## Example
Bad:

```python
import torch.distributed as dist

def sample_tokens(probs, seed, tp_group):
    tp_rank = dist.get_rank(tp_group)
    generator = torch.Generator(device=probs.device)
    generator.manual_seed(seed + tp_rank)
    return torch.multinomial(probs, 1, generator=generator)
```

Good:

```python
import torch.distributed as dist

def sample_tokens(probs, seed, tp_group):
    generator = torch.Generator(device=probs.device)
    generator.manual_seed(seed)
    return torch.multinomial(probs, 1, generator=generator)
```

## Do this instead
Draw from a generator with the request's seed on every rank, or draw on one rank and broadcast what was drawn.

## Seen in
Samplers of diffusion language models under tensor parallelism.

## Known limits
Whether the default generators of all ranks are in step is decided where the processes start, which one file does not
show; such a draw is only "possible". Docstrings, tests, benchmarks, self-tests and initialisers are left alone, and
so are the seeds of data-parallel ranks, which should differ.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.ranks import COLLECTIVES, rank_names
from deltaproof.audit.flow.trace import called_name
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_SEEDERS = frozenset(
    ("manual_seed", "manual_seed_all", "seed", "set_seed", "seed_all", "set_random_seed", "default_rng")
)
_DRAWS = frozenset(("rand", "rand_like", "randint", "randint_like", "randperm", "multinomial", "bernoulli", "normal"))
_DRAWN_INTO = frozenset(("exponential_", "uniform_", "random_", "bernoulli_", "geometric_"))
_SAMPLING = re.compile(r"sampl(e|er|ing)|gumbel|speculat|verify|accept|remask|unmask|denois", re.IGNORECASE)
_PARALLEL = re.compile(r"\btp_(size|rank|group|cpu_group)\b|tensor_(model_)?parallel|torch\.distributed\b")
_QUIET = re.compile(
    r"(^|[_.])(test\w*|bench\w*|profile\w*|demo|example\w*|dummy\w*|fake\w*|mock\w*|synthetic\w*|simulat\w*|warm_?up\w*"
    r"|init|_?initiali[sz]\w*|reset_parameters|(make|create|generate|build|gen|prepare|alloc\w*|process)_\w*(inputs?|data|weights?"
    r"|tensors?|cases?)|main|worker_init\w*|seed_worker|\w*data_?(set|loader)\w*|data|\w*shuffl\w*)(?=$|[_.])",
    re.IGNORECASE,
)


class RankDivergentRandom(Rule):
    """See the module's docstring."""

    code = "HZ501"
    name = "rank-divergent-random"
    stable = False
    triggers = ("rand", "seed", "multinomial", "bernoulli", "exponential_")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield seeds that depend on the rank and draws that ranks do not share."""
        ranked = "rank" in module.text or "process_index" in module.text
        parallel = _PARALLEL.search(module.text) is not None
        if not ranked and not parallel:
            return
        for function in module.functions:
            if ranked:
                yield from self._seeds(function)
            if parallel and _SAMPLING.search(f"{module.path}.{function.qualname}"):
                yield from self._draws(function)

    def _seeds(self, function: Function) -> Iterator[Seen]:
        for call in function.calls:
            if called_name(function, call).rpartition(".")[2] not in _SEEDERS or not call.args:
                continue
            names = rank_names(function, call.args[0])
            if not names:
                continue
            why = _quiet(function, call)
            if why:
                yield Drop(function.module, call, function, why)
                continue
            yield Hit(
                function.module,
                call,
                function,
                f"The seed {ast.unparse(call.args[0])} depends on {sorted(names)[0]}: every rank draws other numbers.",
                "likely",
                "Give every rank of the group the same seed; only data-parallel ranks may differ.",
            )

    def _draws(self, function: Function) -> Iterator[Seen]:
        draws = [call for call in function.calls if _draws_alone(function, call)]
        if not draws:
            return
        first = draws[0]
        why = _quiet(function, first) or _agreed(function)
        if why:
            yield Drop(function.module, first, function, why)
            return
        yield Hit(
            function.module,
            first,
            function,
            f"{called_name(function, first)} draws from this rank's default generator, and no collective makes the "
            "ranks agree on what was drawn.",
            "possible",
            "Draw from a generator seeded alike on every rank, or broadcast what one rank drew.",
            [Quote(function.module, call, "another draw") for call in draws[1:4]],
        )


def _draws_alone(function: Function, call: ast.Call) -> bool:
    name = called_name(function, call)
    first, _, last = name.rpartition(".")
    if any(keyword.arg in ("generator", "seed", "rng") for keyword in call.keywords):
        return False
    if last in _DRAWS:
        return first in ("torch", "np.random", "numpy.random", "random")
    return isinstance(call.func, ast.Attribute) and last in _DRAWN_INTO


def _quiet(function: Function, node: ast.AST) -> str:
    """Return why a draw or a seed is nobody's business; empty where it is."""
    if function.module.is_test:
        return "a test, a benchmark or an example"
    if function.module.in_main(node):
        return "a self-test below __main__"
    if function.name in ("__init__", "__post_init__") or _QUIET.search(function.qualname):
        return "an initialiser, a self-test or made-up data"
    if _QUIET.search(function.module.path.removesuffix(".py").replace("/", ".")):
        return "a module of tests, benchmarks or made-up data"
    return ""


def _agreed(function: Function) -> str:
    """Return where the ranks are made to agree: in the function, or in a method of its class or module."""
    module = function.module
    prefix = function.qualname.rpartition(".")[0]
    near = [other for other in module.functions if other is function or other.qualname.startswith(f"{prefix}.")]
    for other in near if prefix else module.functions:
        for call in other.calls:
            last = called_name(other, call).rpartition(".")[2]
            if last in COLLECTIVES and last not in ("gather", "scatter", "reduce"):
                return f"the ranks agree at line {call.lineno}"
            if last in _SEEDERS and call.args and not rank_names(other, call.args[0]):
                return f"the generator is seeded at line {call.lineno}"
    return ""


RULE = RankDivergentRandom()
