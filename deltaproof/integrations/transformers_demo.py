"""A small model, randomly initialised, on the CPU: a Qwen3-Next or a Kimi Linear, by transformers' own path and ours.

``run_demo`` is what ``examples/qwen3_next.py``, ``examples/kimi_linear.py`` and ``deltaproof check`` show. Importing
this module imports neither torch nor transformers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from math import inf, isfinite
from types import ModuleType
from typing import TYPE_CHECKING, Any

from deltaproof.integrations.transformers import FAMILIES, in_force, use_deltaproof

if TYPE_CHECKING:
    import torch

    from deltaproof.backends.protocol import Backend

FLOAT32_EPSILON = 2.0**-23
# Both paths compute the rule in float32 and differ only in the order in which they scale and add; each layer's norms,
# router and softmax then enlarge what came before. How much that may be is seen in transformers' own path alone: with
# its chunk size set to 32 instead of 64, the same function added up in another order, its logits move by up to 258
# epsilon of the largest logit (40 seeds, median 49). Ours differ from it by up to 82 (median 20), so the tolerance is
# what transformers allows itself. For scale: a gate that is off by 1 % moves the logits by more than a million epsilon.
FORWARD_TOLERANCE = 256 * FLOAT32_EPSILON
# Each parameter is held to its own scale. The worst are A_log and dt_bias: their gradient is one number a head, a sum
# over every token that all but cancels. Measured the same way: transformers' own moves by up to 4834 epsilon
# (median 777), ours by up to 6050 (median 458; 623 for every other parameter). The power of two above both.
GRADIENT_TOLERANCE = 8192 * FLOAT32_EPSILON
# Kimi Linear by the same measure: transformers' own logits move by up to 20 epsilon (40 seeds, median 14) and its
# gradients by up to 71 (median 41); ours differ from its usual path by up to 25 (median 15) and 160 (median 48).
TOLERANCES = {
    "qwen3_next": (FORWARD_TOLERANCE, GRADIENT_TOLERANCE),
    "kimi_linear": (32 * FLOAT32_EPSILON, 256 * FLOAT32_EPSILON),
}

PROMPT, NEW_TOKENS, PADDING = 90, 16, 37

KERNEL_PACKAGES = ("fla", "causal_conv1d")
"""What transformers puts in the place of its own functions where it can be imported."""
MODELS = {
    "qwen3_next": ("Qwen3NextForCausalLM", "Qwen3NextConfig"),
    "kimi_linear": ("KimiLinearForCausalLM", "KimiLinearConfig"),
}


@dataclass(frozen=True)
class DemoRow:
    """One comparison of the two paths.

    Attributes:
        name: what ran.
        difference: the largest absolute difference, as a share of the largest absolute value of transformers' own
            result (gradients: the worst parameter, each on its own scale).
        tolerance: the largest difference that rounding explains.
        tokens_equal: whether the greedy tokens agree; None where none are chosen.
        seconds: wall time of both paths.
        calls: how often our operators ran.
    """

    name: str
    difference: float
    tolerance: float
    tokens_equal: bool | None
    seconds: float
    calls: int

    @property
    def passed(self) -> bool:
        """Whether ours ran and agrees."""
        return self.calls > 0 and self.difference <= self.tolerance and self.tokens_equal is not False


def as_table(rows: list[DemoRow]) -> str:
    """Return one line a comparison; differences are shares of the largest value of transformers' result."""
    lines = [f"{'comparison':20}{'difference':>12}{'tolerance':>12}{'tokens':>10}{'calls':>7}{'seconds':>9}"]
    for row in rows:
        tokens = {None: "-", True: "equal", False: "DIFFER"}[row.tokens_equal]
        lines.append(
            f"{row.name:20}{row.difference:12.1e}{row.tolerance:12.1e}{tokens:>10}{row.calls:7}{row.seconds:9.2f}"
            + ("" if row.passed else "   FAILED")
        )
    return "\n".join(lines)


def why_not(family: str = "qwen3_next") -> str | None:
    """Return why the demo cannot run here, or None."""
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    if find_spec(f"transformers.models.{family}") is None:
        return f"this version of transformers has no {family}"
    if in_force():
        return "use_deltaproof is in force: transformers' own path is not there to compare with"
    return None


def replaced(family: str) -> tuple[str, ...]:
    """Return the names of the functions of a modelling module that packages with GPU kernels take the place of."""
    return (*FAMILIES[family][1:], "causal_conv1d_fn", "causal_conv1d_update")


def small_config(family: str = "qwen3_next", **changes: Any) -> Any:
    """Return a configuration: three linear layers and a full one.

    A Qwen3-Next has two value heads a key head, K = 16 and V = 24, a Kimi Linear four heads of 16. ``changes`` replace
    single entries. The weights are five times larger than by default, near hidden_size ** -0.5, so that every layer
    weighs on the logits.
    """
    entries: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "initializer_range": 0.1,
        "pad_token_id": 0,
    }
    own: dict[str, dict[str, Any]] = {
        "qwen3_next": {
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 24,
            "num_experts": 4,
            "shared_expert_intermediate_size": 32,
        },
        "kimi_linear": {
            "num_key_value_heads": 4,
            "num_local_experts": 4,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "bos_token_id": None,
            "eos_token_id": None,
        },
    }
    module = import_module(f"transformers.models.{family}.configuration_{family}")
    return getattr(module, MODELS[family][1])(**{**entries, **own[family], **changes})


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers: that its own path is the slow one is what we mean to run."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _absent(packages: tuple[str, ...]) -> Iterator[None]:
    """Let imports of some packages fail, as they do where the packages are not installed."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in packages}
    for name in before:
        del sys.modules[name]
    # the import system takes None for a module that is not there
    sys.modules.update(dict.fromkeys(packages))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in packages:
            del sys.modules[name]
        sys.modules.update(before)


def _without_kernels(module: ModuleType) -> ModuleType:
    """Return a second copy of a modelling module, made where the packages with GPU kernels are not installed.

    transformers chooses between a package's function and its own once, when a modelling module is imported. The module
    that the process uses stays as it is.
    """
    assert module.__file__ is not None
    spec = spec_from_file_location(f"{module.__name__}_without_kernels", module.__file__)
    assert spec is not None and spec.loader is not None
    copy = module_from_spec(spec)
    sys.modules[spec.name] = copy
    try:
        with _absent(KERNEL_PACKAGES):
            spec.loader.exec_module(copy)
    finally:
        del sys.modules[spec.name]
    return copy


@contextmanager
def _own_path(family: str) -> Iterator[None]:
    """Let the model run transformers' own functions, also where packages with GPU kernels are installed."""
    module = import_module(f"transformers.models.{family}.modeling_{family}")
    if not any(find_spec(package) for package in KERNEL_PACKAGES):
        yield
        return
    copy = _without_kernels(module)
    before = {name: getattr(module, name) for name in replaced(family)}
    for name in before:
        setattr(module, name, getattr(copy, name))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


def _share(ours: torch.Tensor, own: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest value; infinite where either is not finite."""
    difference = float((ours - own).abs().max() / own.abs().max())
    return difference if isfinite(difference) else inf


@dataclass(frozen=True)
class _Result:
    """What one path gave: tensors, each compared on its own scale, and the tokens chosen."""

    values: list[torch.Tensor]
    tokens: torch.Tensor | None = None


def _prefill(model: Any, ids: torch.Tensor) -> _Result:
    import torch

    with torch.no_grad():
        return _Result([model(ids).logits])


def _generate(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> _Result:
    """Prefill, then choose tokens greedily, one at a time against the cache."""
    made = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return _Result(list(made.logits), made.sequences)


def _generate_padded(model: Any, ids: torch.Tensor) -> _Result:
    """The same with a first row that is padded on the left; the prefill is compared where it is real."""
    import torch

    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    ids = ids * mask
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits[mask.bool()]
    made = _generate(model, ids, mask)
    return _Result([logits, *made.values], made.tokens)


def _gradients(model: Any, ids: torch.Tensor) -> _Result:
    """The gradient of the loss of predicting each next token, for every parameter."""
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return _Result([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])


def run_demo(seed: int = 0, *, backend: str | Backend | None = None, family: str = "qwen3_next") -> list[DemoRow]:
    """Run the model both ways, in float32 on the CPU, and compare.

    Where flash-linear-attention or causal-conv1d is installed, transformers would run their GPU kernels: its own
    functions are put in their place for the time of the call.

    Args:
        seed: of the weights and of the prompt.
        backend: the backend under our path; None is the default one.
        family: "qwen3_next" or "kimi_linear".

    Returns:
        One row each for prefill, generation against the cache, a left-padded batch and the gradients.

    Raises:
        RuntimeError: it cannot run here; the message is that of ``why_not``.
        ContractError: the version of transformers or the backend is not one we know.
    """
    reason = why_not(family)
    if reason is not None:
        raise RuntimeError(reason)
    import torch

    with _quiet(), _own_path(family), torch.random.fork_rng(devices=[]):
        module = import_module(f"transformers.models.{family}.modeling_{family}")
        torch.manual_seed(seed)
        model = getattr(module, MODELS[family][0])(small_config(family)).eval()
        ids = torch.randint(1, model.config.vocab_size, (2, PROMPT))
        forward, backward = TOLERANCES[family]
        runs: list[tuple[str, Callable[[], _Result], float]] = [
            ("prefill", lambda: _prefill(model, ids), forward),
            ("cached generation", lambda: _generate(model, ids, torch.ones_like(ids)), forward),
            ("left-padded batch", lambda: _generate_padded(model, ids), forward),
            ("gradients", lambda: _gradients(model, ids), backward),
        ]
        return [_row(name, run, tolerance, backend, family) for name, run, tolerance in runs]


def _row(
    name: str, run: Callable[[], _Result], tolerance: float, backend: str | Backend | None, family: str
) -> DemoRow:
    start = time.perf_counter()
    own = run()
    with use_deltaproof(backend=backend, models=[family]) as replacement:
        ours = run()
    seconds = time.perf_counter() - start
    difference = max(_share(a, b) for a, b in zip(ours.values, own.values, strict=True))
    equal = None if own.tokens is None or ours.tokens is None else bool(own.tokens.equal(ours.tokens))
    calls = replacement.calls.chunk + replacement.calls.recurrent
    return DemoRow(name, difference, tolerance, equal, seconds, calls)
