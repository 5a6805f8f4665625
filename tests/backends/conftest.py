"""A stand-in for the package fla, on the path of a process that has no mode of it yet."""

from __future__ import annotations

import importlib

import pytest

from tests.backends import fake_fla, fake_flash_qla, fake_flashinfer


@pytest.fixture
def install_fla(tmp_path, monkeypatch):
    """Yield what writes the stand-in and puts it on the path; ``fake_fla.write`` says with which changes."""
    pytest.importorskip("triton")
    from deltaproof.backends import registry
    from deltaproof.backends.adapters import fla_modes, kernels_ran

    for name in (*fla_modes.SWITCHES, "FLA_DISABLE_BACKEND_DISPATCH"):
        # set first, so that what the adapter sets is undone too
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    versions = {"fla-core": "0.6.0", "flash-qla": "0.1.3", "flash-kda": "0.2.0"}
    monkeypatch.setattr(fla_modes, "_claimed", [])
    monkeypatch.setattr(fla_modes, "installed", versions.get)
    monkeypatch.setattr(registry, "_loaded", {})
    # the stand-in's kernels are launched through a class of its own
    monkeypatch.setattr(kernels_ran, "_launchers", lambda: [importlib.import_module("fla.ops.kernels").Kernel])
    monkeypatch.syspath_prepend(tmp_path)
    fake_fla.forget()

    def written(**changes: str | None) -> None:
        fake_fla.write(tmp_path, **changes)
        importlib.invalidate_caches()

    yield written
    fake_fla.forget()


def _installer(tmp_path, monkeypatch, stand_in, versions):
    """Yield what writes a stand-in that needs no mode of the process."""
    pytest.importorskip("triton")
    from deltaproof.backends import registry
    from deltaproof.backends.adapters import flash_qla, flashinfer_package

    for module in (flash_qla, flashinfer_package):
        monkeypatch.setattr(module, "installed", versions.get)
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.syspath_prepend(tmp_path)
    stand_in.forget()

    def written(**changes: str | None) -> None:
        stand_in.write(tmp_path, **changes)
        importlib.invalidate_caches()

    yield written
    stand_in.forget()


@pytest.fixture
def install_flash_qla(tmp_path, monkeypatch):
    """Yield what writes the stand-ins for flash_qla and tilelang and puts them on the path."""
    yield from _installer(tmp_path, monkeypatch, fake_flash_qla, {"flash-qla": "0.1.3", "tilelang": "0.1.15"})


@pytest.fixture
def install_flashinfer(tmp_path, monkeypatch):
    """Yield what writes the stand-in for flashinfer and puts it on the path."""
    versions = {"flashinfer-python": "0.7.2.post1", "nvidia-cutlass-dsl": "4.8.1"}
    yield from _installer(tmp_path, monkeypatch, fake_flashinfer, versions)
