"""`import deltaproof` is light: what needs torch is loaded when it is first asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import deltaproof

ROOT = Path(__file__).parents[1]
OPERATORS = [
    "chunk_gated_delta_rule",
    "fused_recurrent_gated_delta_rule",
    "gated_delta_rule_decode",
    "gated_delta_rule_prefill",
]


def fresh(code: str) -> str:
    """Return what ``code`` prints in a new interpreter."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        "import deltaproof; dir(deltaproof); deltaproof.__version__",
        "from deltaproof import ContractError, StateLayout",
        "import deltaproof.hazards",
        "import deltaproof.contracts.conventions",
        "import deltaproof.backends.protocol",
        "import deltaproof.reports.text, deltaproof.reports.markdown, deltaproof.reports.json_report",
        "import deltaproof.reports.schema",
    ],
)
def test_neither_torch_nor_triton_is_imported(statement):
    code = f"import sys; {statement}; print(sorted({{'torch', 'triton', 'numpy', 'transformers'}} & set(sys.modules)))"
    assert fresh(code) == "[]"


def test_the_face_alone_imports_nothing_from_outside_the_standard_library():
    printed = fresh(
        "import sys; before = set(sys.modules); import deltaproof\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    assert printed == "['deltaproof']"


@pytest.mark.parametrize("name", OPERATORS)
def test_without_torch_an_operator_says_what_to_install(name):
    printed = fresh(
        "import sys; sys.modules['torch'] = None\n"
        f"try:\n    from deltaproof import {name}\n"
        "except ImportError as error:\n    print(error)"
    )
    assert printed == f"deltaproof.{name} needs PyTorch, which is not installed: pip install 'deltaproof[torch]'"


@pytest.mark.parametrize("name", deltaproof.__all__)
def test_every_public_name_is_there_listed_and_documented(name):
    value = getattr(deltaproof, name)
    assert name in dir(deltaproof)
    assert f"``{name}``" in (deltaproof.__doc__ or "")
    assert isinstance(value, str) or value.__doc__


def test_a_name_is_loaded_once():
    assert deltaproof.StateLayout is deltaproof.StateLayout
    assert "StateLayout" in vars(deltaproof)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'deltaproof' has no attribute 'chunk_delta'"):
        deltaproof.chunk_delta  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'chunk_delta'"):
        from deltaproof import chunk_delta  # noqa: F401


def test_the_package_is_typed():
    assert (ROOT / "deltaproof" / "py.typed").is_file()
