"""One call that makes transformers' models with a gated delta rule run our operators.

The modelling modules keep the rule in two module-level functions, and the forward of their GatedDeltaNet layer looks
both up by their global name at every call. ``use_deltaproof`` replaces those two names, so that models already built
switch with those built later. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from deltaproof.contracts.errors import ContractError

if TYPE_CHECKING:
    import torch

    from deltaproof.backends.protocol import Backend

SUPPORTED = ("qwen3_next", "qwen3_5", "qwen3_5_moe", "olmo_hybrid")
MINIMUM, BELOW_MAJOR = "5.17", 6
CHUNK, RECURRENT = "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"

Rule = Callable[..., "tuple[torch.Tensor, torch.Tensor | None]"]

# The replacements in force, oldest first: the last one that covers a module decides.
_in_force: list[Replacement] = []
# What a module held before the first replacement that covers it.
_own: dict[str, tuple[Any, Any]] = {}


@dataclass
class Calls:
    """How often a replacement's two functions ran.

    Attributes:
        chunk: calls of the chunked form (training, prefill).
        recurrent: calls of the recurrent form (one token against a cached state).
    """

    chunk: int = 0
    recurrent: int = 0


class Replacement:
    """What one call of ``use_deltaproof`` put in place, until ``restore`` or the end of its ``with``.

    Attributes:
        models: names of the model families it covers.
        calls: how often its functions ran, over all of them.
    """

    def __init__(self, modules: dict[str, ModuleType], chunk: Rule, recurrent: Rule, calls: Calls) -> None:
        self.models = tuple(modules)
        self.calls = calls
        self._modules = {module.__name__: module for module in modules.values()}
        self._rules = (chunk, recurrent)
        self._entered = 0

    @property
    def active(self) -> bool:
        """Whether it is in force, be it below a later one."""
        return self in _in_force

    def restore(self) -> None:
        """Take this replacement back; a second time does nothing.

        Inside its own ``with`` it takes back itself alone. Otherwise it takes back the earlier plain calls of the same
        scope too: two plain calls in a row count as one.
        """
        if not self.active:
            return
        place = _in_force.index(self)
        first = place
        while not self._entered and first > 0 and not _in_force[first - 1]._entered:
            first -= 1
        gone = _in_force[first : place + 1]
        del _in_force[first : place + 1]
        _apply({name: module for layer in gone for name, module in layer._modules.items()})

    def __enter__(self) -> Replacement:
        if not self.active:
            raise RuntimeError("this replacement was restored: call use_deltaproof again")
        self._entered += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._entered == 1:
            self.restore()
        self._entered -= 1


def in_force() -> bool:
    """Whether any replacement is in force."""
    return bool(_in_force)


def _apply(modules: dict[str, ModuleType]) -> None:
    """Give each module the functions of the last replacement that covers it, or its own."""
    for name, module in modules.items():
        rules = next((layer._rules for layer in reversed(_in_force) if name in layer._modules), None)
        if rules is not None:
            _own.setdefault(name, (getattr(module, CHUNK), getattr(module, RECURRENT)))
        chunk, recurrent = rules or _own.pop(name)
        setattr(module, CHUNK, chunk)
        setattr(module, RECURRENT, recurrent)


def _check_version(allow_untested: bool) -> str:
    """Return the version of transformers; raise outside the tested range."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(
            "use_deltaproof needs transformers, which is not installed: pip install 'deltaproof[transformers]'"
        ) from error
    from packaging.version import Version

    found: str = transformers.__version__
    version = Version(found)
    if not allow_untested and not (version >= Version(MINIMUM) and version.major < BELOW_MAJOR):
        expected = f"a tested version, >= {MINIMUM} and < {BELOW_MAJOR} (allow_untested=True goes on without)"
        raise ContractError("transformers", expected, f"version {found}")
    return found


def _modelling(models: Iterable[str] | None, version: str) -> dict[str, ModuleType]:
    """Import the modelling modules of the families asked for and check that each holds the two functions."""
    if isinstance(models, str):
        raise ContractError("models", "None or a sequence of names", f"the string {models!r}")
    names = SUPPORTED if models is None else tuple(dict.fromkeys(models))
    if not names:
        raise ContractError("models", "None or at least one name", "an empty sequence")
    modules = {}
    for name in names:
        if name not in SUPPORTED:
            raise ContractError("models", f"names among {', '.join(SUPPORTED)}", repr(name))
        path = f"transformers.models.{name}.modeling_{name}"
        try:
            module = import_module(path)
        except ModuleNotFoundError as error:
            if error.name is None or not path.startswith(error.name):
                raise
            raise ContractError("models", f"families that transformers {version} has", repr(name)) from error
        for function in (CHUNK, RECURRENT):
            if not callable(getattr(module, function, None)):
                raise ContractError("transformers", f"a function {function} in {path}", f"none in version {version}")
        modules[name] = module
    return modules


def _ignored() -> frozenset[str]:
    """Return the names of the arguments of attention that a model hands to every layer and this rule does not read."""
    from transformers.utils import TransformersKwargs

    return frozenset(TransformersKwargs.__annotations__) | {"use_cache"}


def _check_ignored(given: dict[str, Any], ignored: frozenset[str]) -> None:
    for name in given:
        if name not in ignored:
            raise ContractError(name, "an argument of the gated delta rule or of transformers' attention", "neither")


def _rules(backend: Backend | None, calls: Calls) -> tuple[Rule, Rule]:
    """Build the two functions, with the parameters of transformers' own.

    Shapes: query, key [B, T, H, K], value [B, T, HV, V], g, beta [B, T, HV], initial_state [N, HV, K, V]. As in
    transformers, the final state is float32 whatever the initial state's dtype is: a cache in a lower precision rounds
    when it stores, and nowhere else.
    """
    from deltaproof.operators.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

    ignored = _ignored()

    def deltaproof_chunk_gated_delta_rule(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        chunk_size: int = 64,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        *,
        cu_seqlens: torch.Tensor | None = None,
        **attention: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        _check_ignored(attention, ignored)
        result = chunk_gated_delta_rule(
            query,
            key,
            value,
            g,
            beta,
            initial_state=None if initial_state is None else initial_state.float(),
            output_final_state=output_final_state,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
            cu_seqlens=cu_seqlens,
            chunk_size=chunk_size,
            backend=backend,
        )
        calls.chunk += 1
        return result

    def deltaproof_recurrent_gated_delta_rule(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        *,
        cu_seqlens: torch.Tensor | None = None,
        **attention: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        _check_ignored(attention, ignored)
        result = fused_recurrent_gated_delta_rule(
            query,
            key,
            value,
            g,
            beta=beta,
            initial_state=None if initial_state is None else initial_state.float(),
            output_final_state=output_final_state,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
            cu_seqlens=cu_seqlens,
            backend=backend,
        )
        calls.recurrent += 1
        return result

    return deltaproof_chunk_gated_delta_rule, deltaproof_recurrent_gated_delta_rule


def use_deltaproof(
    *, backend: str | Backend | None = None, models: Iterable[str] | None = None, allow_untested: bool = False
) -> Replacement:
    """Make transformers' models run our gated delta rule: those already built and those built later.

    The replacement holds for the whole process, from this call until ``restore()``, or until the end of the block with
    ``with use_deltaproof():``. Keep it in force through the backward pass where gradient checkpointing recomputes the
    forward. A second plain call replaces the first, and its ``restore`` undoes both; blocks nest, and the innermost
    decides. The modelling modules of the families asked for are imported here.

    The states in transformers' caches are [N, HV, K, V], layout k_first. ``cu_seq_lens_q`` of a packed batch is
    honoured. The other arguments of attention that a model hands to every layer (``TransformersKwargs``, and
    ``use_cache``) are ignored, as transformers ignores them; any other name is an error.

    Args:
        backend: a backend's name or object; None takes, call by call, the first that can make the call.
        models: names of model families, of "qwen3_next", "qwen3_5", "qwen3_5_moe" and "olmo_hybrid"; None is all.
        allow_untested: go on with a version of transformers outside the tested range, >= 5.17 and < 6.

    Returns:
        A handle with ``restore()``, and ``calls``, which counts what ran; also a context manager.

    Raises:
        ContractError: the version of transformers, a model family or the backend is not one we know.
        ImportError: transformers or PyTorch is not installed.
    """
    version = _check_version(allow_untested)
    modules = _modelling(models, version)
    if isinstance(backend, str):
        from deltaproof.backends.registry import load

        backend = load(backend, "gated_delta_rule")
    calls = Calls()
    replacement = Replacement(modules, *_rules(backend, calls), calls)
    _in_force.append(replacement)
    _apply(replacement._modules)
    return replacement
