"""The ways in which fla chooses its kernels, and loading the package in one of them.

fla reads its switches from the environment of the process, some at import and the others at every call, forward and
backward. So a process has one mode: the first that is loaded.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deltaproof.backends.adapters.fla_operators import Functions
from deltaproof.contracts.errors import ContractError

PACKAGE = "fla-core"
SWITCHES = ("FLA_FLASH_QLA", "FLA_FLASH_KDA", "FLA_TILELANG", "FLA_INTRACARD_CP", "FLA_GLUON")
"""Variables that let fla hand a call to other kernels; it reads them at every call."""
OFF: Mapping[str, str] = dict.fromkeys(SWITCHES, "0")
PARTNERS: Mapping[str, str] = {"flash_qla": "flash-qla", "flash_kda": "flash-kda", "tilelang": "tilelang"}
"""Packages to which fla can hand a call -> their distributions."""


@dataclass(frozen=True)
class Mode:
    """One way to choose kernels.

    Attributes:
        name: name of the backend.
        text: the mode in words, a part of the backend's version.
        switches: what the variables in SWITCHES are set to; those not named are removed.
        allowed: backends that fla's dispatcher may pick, by its own names; None allows any.
        inference: fla takes this path under torch.inference_mode alone, so calls are made under it.
    """

    name: str
    text: str
    switches: Mapping[str, str] = field(default_factory=lambda: OFF)
    allowed: frozenset[str] | None = frozenset()
    inference: bool = False


TRITON = Mode("fla", "its own Triton kernels")
DEFAULT = Mode("fla:default", "its default dispatch", switches={}, allowed=None)
TILELANG = Mode(
    "fla:tilelang",
    "its own Triton kernels, TileLang where its dispatch prefers it",
    switches={**OFF, "FLA_TILELANG": "1"},
    allowed=frozenset({"tilelang"}),
)
INTRACARD = Mode(
    "fla:intracard",
    "its own Triton kernels, long packed sequences split inside the card",
    switches={**OFF, "FLA_INTRACARD_CP": "1"},
    allowed=frozenset({"intracard_cp"}),
    inference=True,
)

_claimed: list[Mode] = []


@dataclass(frozen=True)
class Package:
    """The installed package, imported in one mode, with its functions for one operator.

    Attributes:
        version: of the distribution.
        chunk, recurrent: its functions.
        dispatcher: the class its dispatcher's backends derive from.
        gated_backward_refused: its own kernel refuses the chunked backward with a gate on this GPU and Triton.
        partners: packages that are here for it to hand these functions' calls to.
    """

    version: str
    chunk: Callable[..., Any]
    recurrent: Callable[..., Any]
    dispatcher: type[Any]
    gated_backward_refused: bool
    partners: frozenset[str]


def load(mode: Mode, wanted: Functions) -> Package:
    """Import fla's functions for one operator in a mode, which the process keeps.

    Raises:
        ContractError: fla is not installed, or too old, or this process has another mode already, or fla was
            imported with its dispatch switched off and the mode needs it.
    """
    if importlib.util.find_spec("fla") is None:
        raise ContractError("backend", f"package {PACKAGE} for {mode.name} (pip install {PACKAGE})", "no package 'fla'")
    if _claimed and _claimed[0] != mode:
        raise ContractError(
            "backend", f"{_claimed[0].name}, the one mode of fla that this process was started in", mode.name
        )
    before = {name: os.environ.get(name) for name in SWITCHES}
    _set({name: mode.switches.get(name) for name in SWITCHES})
    try:
        package = _import(mode, wanted)
    except BaseException:
        if not _claimed:
            _set(before)
        raise
    _claimed[:] = [mode]
    return package


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _import(mode: Mode, wanted: Functions) -> Package:
    try:
        functions = importlib.import_module(wanted.module)
        dispatch: Any = importlib.import_module("fla.backends")
        environment = importlib.import_module("fla.utils")
    except ImportError as error:
        expected = f"package {PACKAGE} >= 0.6.0 with what it needs (pip install {PACKAGE})"
        raise ContractError("backend", expected, f"{error}") from error
    version = installed(PACKAGE) or str(getattr(importlib.import_module("fla"), "__version__", "of unknown version"))
    chunk, recurrent = getattr(functions, wanted.chunk), getattr(functions, wanted.recurrent)
    for function in (chunk, recurrent):
        names = inspect.signature(function).parameters
        if lacking := wanted.taken - set(names):
            text = f"{PACKAGE} {version}, whose {function.__name__} has no {', '.join(sorted(lacking))}"
            raise ContractError("backend", f"{PACKAGE} >= 0.6.0", text)
    if not hasattr(dispatch.BaseBackend, "get_implementation"):
        raise ContractError(
            "backend", f"a {PACKAGE} whose dispatch can be watched, as in 0.6.0", f"{PACKAGE} {version}"
        )
    if getattr(dispatch, "_DISPATCH_DISABLED", False) and mode.allowed != frozenset():
        got = "fla was imported with FLA_DISABLE_BACKEND_DISPATCH=1"
        raise ContractError("backend", f"fla's dispatch, which {mode.name} needs", got)
    partners = {name for name in wanted.partners if importlib.util.find_spec(name) is not None}
    # TileLang compiles with nvcc, and fla passes it by without
    if "tilelang" in partners and not environment.has_usable_nvcc():
        partners.remove("tilelang")
    if mode == TILELANG and "tilelang" not in partners:
        raise ContractError(
            "backend", f"package tilelang and a CUDA compiler (nvcc) for {mode.name}", "not both are here"
        )
    return Package(
        version=version,
        chunk=chunk,
        recurrent=recurrent,
        dispatcher=dispatch.BaseBackend,
        gated_backward_refused=bool(
            environment.IS_NVIDIA_HOPPER and environment.TRITON_ABOVE_3_4_0 and not environment.TRITON_ABOVE_3_7_1
        ),
        partners=frozenset(partners),
    )


def installed(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def described(mode: Mode, package: Package) -> str:
    """Return the version a report shows: fla's, the mode, partners it may hand calls to, and other settings of fla."""
    parts = [mode.text]
    partners = sorted(package.partners if mode.allowed is None else package.partners & mode.allowed)
    parts += [f"{PARTNERS[name]} {installed(PARTNERS[name]) or 'of unknown version'}" for name in partners]
    parts += sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("FLA_") and k not in SWITCHES)
    return f"{package.version} ({'; '.join(parts)})"
