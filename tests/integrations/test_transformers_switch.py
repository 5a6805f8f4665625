"""When ``use_deltaproof`` is in force, what takes it back, and which versions of transformers it takes."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from deltaproof.contracts.errors import ContractError  # noqa: E402
from deltaproof.integrations.transformers import FAMILIES, RECURRENT, SUPPORTED, in_force, use_deltaproof  # noqa: E402
from deltaproof.integrations.transformers_demo import small_config, why_not  # noqa: E402

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

LINEAR_LAYERS = 3


def functions(family: str) -> tuple[Any, Any]:
    module = import_module(f"transformers.models.{family}.modeling_{family}")
    return getattr(module, FAMILIES[family].chunk), getattr(module, FAMILIES[family].recurrent)


@torch.no_grad()
def prefill(model, ids):
    return model(ids, use_cache=False).logits


class TestInForceAndRestored:
    @pytest.fixture(autouse=True)
    def clean(self):
        before = {family: functions(family) for family in SUPPORTED}
        yield
        assert not in_force()
        assert {family: functions(family) for family in SUPPORTED} == before

    @pytest.fixture
    def model(self):
        from transformers import Qwen3NextForCausalLM

        torch.manual_seed(0)
        return Qwen3NextForCausalLM(small_config()).eval()

    @pytest.fixture
    def ids(self):
        return torch.arange(1, 21)[None]

    def test_restore_gives_back_transformers_own_functions(self, model, ids):
        before = functions("qwen3_next")
        replacement = use_deltaproof()
        assert replacement.active
        assert all(ours is not own for ours, own in zip(functions("qwen3_next"), before, strict=True))
        replacement.restore()
        replacement.restore()
        prefill(model, ids)
        assert not replacement.active
        assert replacement.calls.chunk == 0
        assert functions("qwen3_next") == before

    def test_two_plain_calls_count_as_one(self, model, ids):
        before = functions("qwen3_next")
        first, second = use_deltaproof(), use_deltaproof()
        prefill(model, ids)
        assert (first.calls.chunk, second.calls.chunk) == (0, LINEAR_LAYERS)
        second.restore()
        assert not first.active
        assert functions("qwen3_next") == before

    def test_restoring_the_earlier_of_two_leaves_the_later(self, model, ids):
        first, second = use_deltaproof(), use_deltaproof()
        first.restore()
        prefill(model, ids)
        assert second.calls.chunk == LINEAR_LAYERS
        second.restore()

    def test_the_innermost_block_decides(self, model, ids):
        with use_deltaproof() as outer:
            with use_deltaproof() as inner:
                prefill(model, ids)
            assert (outer.calls.chunk, inner.calls.chunk) == (0, LINEAR_LAYERS)
            prefill(model, ids)
        assert (outer.calls.chunk, inner.calls.chunk) == (LINEAR_LAYERS, LINEAR_LAYERS)

    def test_a_block_leaves_a_plain_call_before_it_in_force(self, model, ids):
        plain = use_deltaproof()
        with use_deltaproof():
            pass
        prefill(model, ids)
        assert plain.calls.chunk == LINEAR_LAYERS
        plain.restore()

    def test_a_plain_call_inside_a_block_does_not_undo_the_block(self, model, ids):
        with use_deltaproof() as block:
            use_deltaproof().restore()
            prefill(model, ids)
        assert block.calls.chunk == LINEAR_LAYERS

    def test_a_block_entered_twice_lasts_to_the_outer_end(self, model, ids):
        replacement = use_deltaproof()
        with replacement:
            with replacement:
                pass
            prefill(model, ids)
        assert replacement.calls.chunk == LINEAR_LAYERS

    def test_an_exception_restores_and_passes_through(self):
        before = functions("qwen3_next")
        with pytest.raises(KeyError, match="from inside"), use_deltaproof():
            raise KeyError("from inside")
        assert functions("qwen3_next") == before

    def test_a_restored_replacement_cannot_be_entered(self):
        replacement = use_deltaproof()
        replacement.restore()
        with pytest.raises(RuntimeError, match="call use_deltaproof again"), replacement:
            pass

    def test_only_the_families_asked_for_change(self):
        before = functions("qwen3_5")
        with use_deltaproof(models=["qwen3_next"]) as replacement:
            assert replacement.models == ("qwen3_next",)
            assert functions("qwen3_5") == before
            assert functions("qwen3_next")[0].__name__ == "deltaproof_chunk_gated_delta_rule"

    def test_a_backend_is_taken_by_name(self, model, ids):
        with use_deltaproof(backend="torch") as replacement:
            prefill(model, ids)
        assert replacement.calls.chunk == LINEAR_LAYERS

    @pytest.mark.parametrize(
        ("settings", "argument"),
        [
            ({"models": ["llama"]}, "models"),
            ({"models": "qwen3_next"}, "models"),
            ({"models": []}, "models"),
            ({"backend": "no_such"}, "backend"),
        ],
    )
    def test_a_bad_argument_changes_nothing(self, settings, argument):
        before = functions("qwen3_next")
        with pytest.raises(ContractError) as caught:
            use_deltaproof(**settings)
        assert caught.value.argument == argument
        assert functions("qwen3_next") == before


class TestVersionsOfTransformers:
    @pytest.mark.parametrize("version", ["4.57.1", "5.16.4", "5.17.0.dev0", "6.0.0.dev0", "6.0.0", "7.1"])
    def test_outside_the_tested_range_is_an_error_with_both_versions(self, monkeypatch, version):
        monkeypatch.setattr("transformers.__version__", version)
        with pytest.raises(ContractError) as caught:
            use_deltaproof()
        assert f"version {version}" in str(caught.value)
        assert ">= 5.17 and < 6" in str(caught.value)
        assert not in_force()

    @pytest.mark.parametrize("version", ["5.17.0", "5.17.1+local", "5.99.0"])
    def test_inside_the_range_is_taken(self, monkeypatch, version):
        monkeypatch.setattr("transformers.__version__", version)
        with use_deltaproof(models=["qwen3_next"]) as replacement:
            assert replacement.active

    def test_the_override_goes_on(self, monkeypatch):
        monkeypatch.setattr("transformers.__version__", "6.0.0")
        with use_deltaproof(models=["qwen3_next"], allow_untested=True) as replacement:
            assert replacement.active

    def test_a_version_without_the_function_is_an_error_that_names_it(self, monkeypatch):
        monkeypatch.delattr(import_module("transformers.models.qwen3_5.modeling_qwen3_5"), RECURRENT)
        with pytest.raises(ContractError, match=rf"a function {RECURRENT} in .*qwen3_5"):
            use_deltaproof()
        assert not in_force()

    def test_without_transformers_the_error_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ImportError, match=r"pip install 'deltaproof\[transformers\]'"):
            use_deltaproof()


def test_importing_the_integration_imports_neither_torch_nor_transformers():
    code = (
        "import sys, deltaproof.integrations.transformers, deltaproof.integrations.transformers_demo as demo;"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
