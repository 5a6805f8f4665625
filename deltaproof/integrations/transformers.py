"""One call that makes transformers' models with a gated delta rule or Kimi delta attention run our operators.

The modelling modules keep the rule in two module-level functions, and the forward of their linear layer looks both up
by their global name at every call. ``use_deltaproof`` replaces those two names, so that models already built
switch with those built later. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from deltaproof.contracts.errors import ContractError
from deltaproof.integrations.transformers_rules import Calls, Rule, rules

if TYPE_CHECKING:
    from deltaproof.backends.protocol import Backend

MINIMUM, BELOW_MAJOR = "5.17", 6
CHUNK, RECURRENT = "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"


class Family(NamedTuple):
    """A family of models.

    Attributes:
        operator: the operator of its linear layers.
        chunk, recurrent: names of the two functions in its modelling module.
    """

    operator: str = "gated_delta_rule"
    chunk: str = CHUNK
    recurrent: str = RECURRENT


FAMILIES = {
    "qwen3_next": Family(),
    "qwen3_5": Family(),
    "qwen3_5_moe": Family(),
    "olmo_hybrid": Family(),
    "kimi_linear": Family("kda", "chunk_kimi_delta_attention", "recurrent_kimi_delta_attention"),
}
SUPPORTED = tuple(FAMILIES)
FROM_THE_START = tuple(name for name in FAMILIES if name != "kimi_linear")
"""Families that every version we take has."""

# The replacements in force, oldest first: the last one that covers a module decides.
_in_force: list[Replacement] = []
# What a module held before the first replacement that covers it.
_own: dict[str, tuple[Any, Any]] = {}


class Replacement:
    """What one call of ``use_deltaproof`` put in place, until ``restore`` or the end of its ``with``.

    Attributes:
        models: names of the model families it covers.
        calls: how often its functions ran, over all of them.
    """

    def __init__(
        self, modules: dict[str, ModuleType], functions: Mapping[str, tuple[Rule, Rule]], calls: Calls
    ) -> None:
        self.models = tuple(modules)
        self.calls = calls
        self._modules = {module.__name__: module for module in modules.values()}
        self._families = {module.__name__: FAMILIES[name] for name, module in modules.items()}
        self._functions = functions
        self._entered = 0

    def _rules(self, module: str) -> tuple[Rule, Rule]:
        """Return the two functions of a module."""
        return self._functions[self._families[module].operator]

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
        _apply(gone)

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


def _apply(layers: Iterable[Replacement]) -> None:
    """Give each module of some replacements the functions of the last one in force that covers it, or its own."""
    for changed in layers:
        for name, module in changed._modules.items():
            family = changed._families[name]
            found = next((layer._rules(name) for layer in reversed(_in_force) if name in layer._modules), None)
            if found is not None:
                _own.setdefault(name, (getattr(module, family.chunk), getattr(module, family.recurrent)))
            elif name not in _own:
                # another of these replacements covered it too
                continue
            chunk, recurrent = found or _own.pop(name)
            setattr(module, family.chunk, chunk)
            setattr(module, family.recurrent, recurrent)


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
            if models is None and name not in FROM_THE_START:
                continue
            raise ContractError("models", f"families that transformers {version} has", repr(name)) from error
        for function in FAMILIES[name][1:]:
            if not callable(getattr(module, function, None)):
                raise ContractError("transformers", f"a function {function} in {path}", f"none in version {version}")
        modules[name] = module
    return modules


def _backends(operators: Iterable[str], backend: str | Backend | None, some: bool) -> dict[str, Backend | None]:
    """Return the backend of each operator; with ``some`` operators that it does not implement are left out."""
    if backend is None:
        return dict.fromkeys(operators)
    from deltaproof.backends.registry import load

    found: dict[str, Backend | None] = {}
    refused = []
    for operator in operators:
        try:
            if isinstance(backend, str):
                found[operator] = load(backend, operator)
            elif backend.operator == operator:
                found[operator] = backend
            else:
                raise ContractError("backend", f"a backend of {operator}", f"one of {backend.operator}")
        except ContractError as error:
            refused.append(error)
    if refused and not (some and found):
        raise refused[0]
    return found


def use_deltaproof(
    *, backend: str | Backend | None = None, models: Iterable[str] | None = None, allow_untested: bool = False
) -> Replacement:
    """Make transformers' models run our delta rules: those already built and those built later.

    The replacement holds for the whole process, from this call until ``restore()``, or until the end of the block with
    ``with use_deltaproof():``. Keep it in force through the backward pass where gradient checkpointing recomputes the
    forward. A second plain call replaces the first, and its ``restore`` undoes both; blocks nest, and the innermost
    decides. The modelling modules of the families asked for are imported here.

    The states in transformers' caches are [N, HV, K, V], layout k_first. ``cu_seq_lens_q`` of a packed batch is
    honoured. The other arguments of attention that a model hands to every layer (``TransformersKwargs``, and
    ``use_cache``) are ignored, as transformers ignores them; any other name is an error.

    Args:
        backend: a backend's name or object; None takes, call by call, the first that can make the call.
        models: names of model families, of "qwen3_next", "qwen3_5", "qwen3_5_moe", "olmo_hybrid" (gated delta rule) and
            "kimi_linear" (Kimi delta attention); None is all that this version of transformers has and ``backend``
            implements.
        allow_untested: go on with a version of transformers outside the tested range, >= 5.17 and < 6.

    Returns:
        A handle with ``restore()``, and ``calls``, which counts what ran; also a context manager.

    Raises:
        ContractError: the version of transformers, a model family or the backend is not one we know.
        ImportError: transformers or PyTorch is not installed.
    """
    version = _check_version(allow_untested)
    modules = _modelling(models, version)
    chosen = _backends({FAMILIES[name].operator: None for name in modules}, backend, models is None)
    calls = Calls()
    functions = {operator: rules(operator, found, calls) for operator, found in chosen.items()}
    covered = {name: module for name, module in modules.items() if FAMILIES[name].operator in functions}
    replacement = Replacement(covered, functions, calls)
    _in_force.append(replacement)
    _apply([replacement])
    return replacement
