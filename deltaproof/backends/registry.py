"""Finding a backend by name, by entry point, by file or by module, and choosing one for a call."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from deltaproof.backends.adapters import ADAPTERS
from deltaproof.backends.protocol import Backend
from deltaproof.contracts.conventions import Conventions, GateSpace
from deltaproof.contracts.errors import ContractError
from deltaproof.ops.common.calls import Call
from deltaproof.ops.common.capabilities import CAPABILITIES
from deltaproof.ops.registry import operator as find_operator

ENTRY_POINTS = "deltaproof.backends"


def _checked(found: Any, source: str) -> Backend:
    """Return an instance of what was found; raise ContractError where it is no backend."""
    if inspect.isclass(found):
        found = found()
    for attribute in ("name", "version", "operator", "conventions", "unsupported"):
        if not hasattr(found, attribute):
            raise ContractError("backend", f"a class with attribute {attribute!r} (see docs/interfaces.md)", source)
    if not isinstance(found.conventions, Conventions):
        raise ContractError("backend.conventions", "deltaproof.backends.Conventions", type(found.conventions).__name__)
    if not isinstance(found.unsupported, Mapping) or not all(found.unsupported.values()):
        raise ContractError("backend.unsupported", "a mapping of capability or clause to a reason", found.unsupported)
    from deltaproof.contracts.clauses import CLAUSES

    known_forms = find_operator(found.operator).forms
    for name in found.unsupported:
        form, _, scoped = name.rpartition("/")
        if (form and form not in known_forms) or (scoped not in CAPABILITIES and scoped not in CLAUSES):
            known = ", ".join(CAPABILITIES)
            raise ContractError("backend.unsupported", f"a clause or one of {known}, or FORM/ and one", repr(name))
    if not any(callable(getattr(found, form, None)) for form in known_forms):
        forms = ", ".join(known_forms)
        raise ContractError("backend", f"at least one method of {forms}", source)
    backend: Backend = found
    return backend


def _attribute(spec: str) -> Any:
    """Import ``path/to/file.py:ATTR`` or ``package.module:ATTR``."""
    place, _, attribute = spec.rpartition(":")
    if place.endswith(".py"):
        path = Path(place).resolve()
        if not path.is_file():
            raise ContractError("backend", "a file that exists", place)
        name = f"deltaproof_backend_{path.stem}"
        module_spec = importlib.util.spec_from_file_location(name, path)
        assert module_spec is not None and module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[name] = module
        module_spec.loader.exec_module(module)
    elif not all(part.isidentifier() for part in place.split(".")):
        raise ContractError("backend", "FILE.py:ATTR or MODULE:ATTR", repr(spec))
    else:
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise ContractError("backend", "a module that can be imported", f"{place} ({error})") from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ContractError("backend", f"an attribute of {place}", repr(attribute))
        found = getattr(found, part)
    return found


_loaded: dict[tuple[str, str], Backend] = {}


def _named(operator: str) -> Mapping[str, str]:
    """Return where the operator's own backends and the adapters to peers are, by name."""
    return {**ADAPTERS.get(operator, {}), **find_operator(operator).backends}


def builtin(operator: str, name: str) -> Backend:
    """Return one of the operator's own backends or an adapter."""
    # a plain dict: torch.compile looks through functools.cache and would trace the import
    if (operator, name) not in _loaded:
        _loaded[operator, name] = _checked(_attribute(_named(operator)[name]), name)
    return _loaded[operator, name]


def _reason(backend: Backend, attribute: str) -> str | None:
    """Return what a backend says of itself in an attribute it need not have."""
    reason = getattr(backend, attribute, None)
    return None if reason is None else str(reason)


def usable(operator: str) -> Iterator[tuple[str, Backend | str]]:
    """Yield the operator's own backends in order of preference, or why one is not taken here without being asked for.

    A backend may say so itself: ``only_when_asked`` or ``cannot_run`` is then the reason.
    """
    for name in find_operator(operator).backends:
        try:
            backend = builtin(operator, name)
        except ContractError as error:
            yield name, f"not here: {error.got}"
            continue
        reason = _reason(backend, "cannot_run") or _reason(backend, "only_when_asked")
        yield name, backend if reason is None else f"only when it is asked for: {reason}"


def preferred(operator: str, device: str) -> list[str]:
    """Return the operator's own backends that are taken on a device ("cpu" or "cuda"), in order of preference.

    The last is the first that has every form; what comes before it takes some calls.
    """
    found = []
    for name, candidate in usable(operator):
        if isinstance(candidate, str) or f"device:{device}" in candidate.unsupported:
            continue
        found.append(name)
        if all(hasattr(candidate, form) for form in find_operator(operator).forms):
            break
    return found


def names(operator: str) -> list[str]:
    """Return the names ``load`` knows for an operator: its own, adapters to peers, then installed entry points."""
    own = list(find_operator(operator).backends)
    adapters = [name for name in ADAPTERS.get(operator, {}) if name not in own]
    taken = {*own, *adapters}
    return own + adapters + sorted(point.name for point in entry_points(group=ENTRY_POINTS) if point.name not in taken)


def load(spec: str, operator: str) -> Backend:
    """Return the backend a user names.

    Args:
        spec: a name, ``path/to/file.py:ATTR`` or ``package.module:ATTR``; ATTR is a class or an instance.
        operator: the operator it must implement.

    Raises:
        ContractError: nothing is found there, what is found is no backend of that operator, or an adapter's package
            is not installed.
    """
    if spec in _named(operator):
        return builtin(operator, spec)
    if ":" in spec:
        backend = _checked(_attribute(spec), spec)
    else:
        points = [point for point in entry_points(group=ENTRY_POINTS) if point.name == spec]
        if not points:
            known = ", ".join(names(operator))
            raise ContractError("backend", f"one of {known}, FILE.py:ATTR or MODULE:ATTR", repr(spec))
        backend = _checked(points[0].load(), spec)
    if backend.operator != operator:
        raise ContractError("backend", f"a backend of {operator}", f"{spec}, a backend of {backend.operator}")
    return backend


def declared(backend: Backend, form: str) -> dict[str, str]:
    """Return what a backend declares unsupported in one form: what it names for all, and as ``form/name``."""
    own = {name.removeprefix(f"{form}/"): reason for name, reason in backend.unsupported.items()}
    return {name: reason for name, reason in own.items() if "/" not in name}


def missing(backend: Backend, form: str, call: Call) -> dict[str, str]:
    """Return what the call needs and the backend declares it lacks, with the reasons; empty if it can be made."""
    if not callable(getattr(backend, form, None)):
        return {form: f"{backend.name} has no form {form!r}"}
    reason = _reason(backend, "cannot_run")
    if reason is not None:
        return {form: reason}
    unsupported = declared(backend, form)
    lacks = {name: unsupported[name] for name in sorted(call.required()) if name in unsupported}
    if getattr(call.options, "batch_invariant", False) and "I2" in unsupported:
        lacks["batch_invariant"] = unsupported["I2"]
    if call.options.layout not in backend.conventions.layouts:
        lacks[f"layout:{call.options.layout.value}"] = "not among its declared layouts"
    return lacks


def select(operator: str, form: str, call: Call, backend: str | Backend | None) -> Backend:
    """Return the backend for one call: the one asked for, or the first of the operator's own that can make it.

    Raises:
        ContractError: the backend asked for, or every backend, declares that it lacks something the call needs.
    """
    if backend is not None:
        chosen = load(backend, operator) if isinstance(backend, str) else _checked(backend, repr(backend))
        if chosen.operator != operator:
            raise ContractError("backend", f"a backend of {operator}", f"{chosen.name}, a backend of {chosen.operator}")
        if chosen.conventions.gate is not GateSpace.LOG or chosen.conventions.float32_gates:
            raise ContractError("backend", "a backend that takes log gates of any dtype", chosen.name)
        lacks = missing(chosen, form, call)
        if lacks:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in lacks.items())
            raise ContractError("backend", f"a backend that supports {', '.join(lacks)}", f"{chosen.name} ({reasons})")
        return chosen
    tried: list[str] = []
    for name, candidate in usable(operator):
        if isinstance(candidate, str):
            tried.append(f"{name} ({candidate})")
            continue
        lacks = missing(candidate, form, call)
        if not lacks:
            return candidate
        tried.append(f"{name} lacks " + ", ".join(f"{what} ({why})" for what, why in lacks.items()))
    raise ContractError("backend", "a backend that can make this call", "none: " + "; ".join(tried))
