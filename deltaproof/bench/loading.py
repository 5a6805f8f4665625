"""The backends of a run: those that the user names, and ``ours``, which is chosen call by call."""

from __future__ import annotations

from dataclasses import dataclass

from deltaproof.backends.protocol import Backend
from deltaproof.backends.registry import load, names, select, usable
from deltaproof.bench.model import BenchBackend
from deltaproof.bench.verbs import Call, Unsupported
from deltaproof.contracts.errors import ContractError
from deltaproof.ops.registry import operator as find_operator

OURS = "ours"
"""Name of what a call without ``backend=`` runs: the first of the operator's own backends that can make it."""
DEFAULT_PEER = "fla"
REASON_LENGTH = 400


@dataclass(frozen=True)
class Loaded:
    """A backend of the run.

    Attributes:
        info: its name, version and whether it is a peer.
        backend: None for ``ours``, and where it could not be loaded.
    """

    info: BenchBackend
    backend: Backend | None

    def for_call(self, operator: str, form: str, call: Call) -> Backend:
        """Return the backend that makes a call.

        Raises:
            Unsupported: none of the operator's own backends can.
        """
        if self.backend is not None:
            return self.backend
        try:
            return select(operator, form, call, None)
        except ContractError as error:
            raise Unsupported(str(error.got)) from None


def default_backends(operator: str, device: str) -> tuple[str, ...]:
    """Return ``ours`` and, on a GPU, the default peer."""
    return (OURS, DEFAULT_PEER) if device == "cuda" and DEFAULT_PEER in names(operator) else (OURS,)


def load_backends(operator: str, device: str, specs: tuple[str, ...] | None) -> list[Loaded]:
    """Return every backend, or why it is not here; by default ``default_backends``.

    Raises:
        ContractError: a name that nobody registered, or a file or module that holds no such backend.
    """
    own, known = find_operator(operator).backends, names(operator)
    found: dict[str, Loaded] = {}
    for spec in dict.fromkeys(default_backends(operator, device) if specs is None else specs):
        if spec == OURS:
            found[spec] = Loaded(_ours(operator, device), None)
            continue
        peer = spec not in own
        try:
            backend = load(spec, operator)
        except Exception as error:
            # a registered name may need a package, a GPU or another process; anything else is the user's mistake
            if spec not in known:
                raise error if isinstance(error, ContractError) else _unusable(spec, error) from error
            found[spec] = Loaded(BenchBackend(name=spec, spec=spec, peer=peer, not_loaded=reason(error)), None)
            continue
        name = spec if backend.name in found else backend.name
        info = BenchBackend(name=name, spec=spec, version=str(backend.version), peer=peer)
        found[name] = Loaded(info, backend)
    return list(found.values())


def _ours(operator: str, device: str) -> BenchBackend:
    """Return what ``ours`` chooses from on a device, in order of preference."""
    candidates = [
        f"{name} {candidate.version}"
        for name, candidate in usable(operator)
        if not isinstance(candidate, str) and f"device:{device}" not in candidate.unsupported
    ]
    if candidates:
        return BenchBackend(name=OURS, spec=OURS, version=", ".join(candidates), peer=False)
    return BenchBackend(name=OURS, spec=OURS, peer=False, not_loaded=f"no backend of {operator} runs on {device}")


def _unusable(spec: str, error: Exception) -> ContractError:
    return ContractError("backend", "a backend that can be imported", f"{spec} ({reason(error)})")


def reason(error: BaseException) -> str:
    """Return an error in one line."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if isinstance(error, ContractError) else f"{type(error).__name__}: {lines[0]}"
    return text[:REASON_LENGTH].rstrip(": ")
