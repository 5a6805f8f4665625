"""A module's other text takes effect everywhere, also in modules that import from it, and triton finds it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from deltaproof.verify.source_mutants.replace import Replacement


@pytest.fixture
def modules(tmp_path, monkeypatch):
    folder = tmp_path / "original"
    folder.mkdir()
    (folder / "replaced_helper.py").write_text("def value():\n    return 1\n")
    (folder / "replaced_user.py").write_text("from replaced_helper import value\n\nTOTAL = value() + 1\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield folder
    for name in ("replaced_helper", "replaced_user"):
        sys.modules.pop(name, None)


def test_the_text_replaces_the_module_and_what_others_import_from_it(modules, tmp_path) -> None:
    Replacement({"replaced_helper": "def value():\n    return 41\n"}, tmp_path / "other").install()
    import replaced_helper
    import replaced_user

    assert replaced_user.TOTAL == 42
    assert "return 41" in inspect.getsource(replaced_helper.value)
    assert Path(replaced_user.__file__).parent == modules


def test_a_module_that_is_already_imported_is_refused(modules, tmp_path) -> None:
    import replaced_helper  # noqa: F401

    with pytest.raises(RuntimeError, match="replaced_helper"):
        Replacement({"replaced_helper": ""}, tmp_path).install()


KERNEL = """
import triton
import triton.language as tl


@triton.jit
def fill(x, N: tl.constexpr):
    tl.store(x + tl.arange(0, N), 2.0)
"""
LAUNCHES = """
import sys
from pathlib import Path

import torch

from deltaproof.verify.source_mutants.replace import Launches, Replacement

folder, text = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, str(folder))
Replacement({"kernels": text}, folder / "other").install()
launches = Launches()
launches.install()
import kernels

x = torch.zeros(4)
kernels.fill[(1,)](x, N=4)
print(x.tolist(), sorted(launches.take()), sorted(launches.take()))
"""


def test_a_kernel_from_other_text_is_interpreted_and_its_launch_is_noted(tmp_path, interpreter) -> None:
    (tmp_path / "kernels.py").write_text("raise ImportError\n")
    words = [sys.executable, "-c", LAUNCHES, str(tmp_path), KERNEL]
    done = subprocess.run(words, capture_output=True, text=True, env=interpreter, check=False)
    assert done.stdout.splitlines() == ["[2.0, 2.0, 2.0, 2.0] [('kernels', 'fill')] []"], done.stderr
