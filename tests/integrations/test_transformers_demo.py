"""The demo passes with our operators and fails with wrong ones."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from deltaproof.integrations import transformers_demo as demo  # noqa: E402
from deltaproof.integrations.transformers import use_deltaproof  # noqa: E402
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend  # noqa: E402
from deltaproof.ops.kda.torch_backend import TorchBackend as KdaTorchBackend  # noqa: E402

pytestmark = pytest.mark.skipif(demo.why_not() is not None, reason=str(demo.why_not()))

NAMES = ["prefill", "cached generation", "left-padded batch", "gradients"]


class ScaleOffByAThousandth:
    def chunk(self, call):
        return super().chunk(self._wrong(call))

    def recurrent(self, call):
        return super().recurrent(self._wrong(call))

    def _wrong(self, call):
        options = dataclasses.replace(call.options, scale=call.options.scale * 1.001)
        return dataclasses.replace(call, options=options)


class QwenScaleOff(ScaleOffByAThousandth, TorchBackend):
    pass


class KimiScaleOff(ScaleOffByAThousandth, KdaTorchBackend):
    pass


class StateForgotten(TorchBackend):
    def recurrent(self, call):
        return super().recurrent(dataclasses.replace(call, initial_state=None))


each_family = pytest.mark.parametrize("family", list(demo.MODELS))


@pytest.fixture(autouse=True)
def _present(request):
    family = getattr(request.node, "callspec", None) and request.node.callspec.params.get("family")
    if family and demo.why_not(family) is not None:
        pytest.skip(str(demo.why_not(family)))


@each_family
def test_every_row_passes_and_our_operators_ran(family):
    rows = demo.run_demo(family=family)
    assert [row.name for row in rows] == NAMES
    # Three linear layers; generation adds one step a layer for each new token but the first.
    steps = 3 * (demo.NEW_TOKENS - 1)
    assert [row.calls for row in rows] == [3, 3 + steps, 6 + steps, 3]
    assert [row.tokens_equal for row in rows] == [None, True, True, None]
    assert all(row.passed and row.difference > 0 for row in rows)


@pytest.mark.parametrize(("family", "backend"), [("qwen3_next", QwenScaleOff), ("kimi_linear", KimiScaleOff)])
def test_a_scale_that_is_off_by_a_thousandth_fails_every_row(family, backend):
    rows = demo.run_demo(backend=backend(), family=family)
    assert not any(row.passed for row in rows)
    assert all(row.difference > 5 * row.tolerance for row in rows)


def test_a_forgotten_state_fails_the_rows_that_decode():
    rows = demo.run_demo(backend=StateForgotten())
    assert [row.passed for row in rows] == [True, False, False, True]


def test_the_random_generator_of_the_caller_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    demo.run_demo()
    assert torch.get_rng_state().equal(before)


def test_it_refuses_where_transformers_own_path_is_not_there():
    with use_deltaproof(models=["qwen3_next"]), pytest.raises(RuntimeError, match="in force"):
        demo.run_demo()


KERNELS = """
def refuse(*arguments, **options):
    raise AssertionError("a GPU kernel was called on the CPU")

{names} = refuse
"""
WITH_KERNELS = """
import sys

import fla.ops.gated_delta_rule
from deltaproof.integrations import transformers_demo as demo
from transformers.models.qwen3_next import modeling_qwen3_next as module

before = {name: getattr(module, name) for name in demo.replaced("qwen3_next")}
try:
    before[demo.replaced("qwen3_next")[0]](*[None] * 5)
except AssertionError as error:
    assert "GPU kernel" in str(error)
else:
    raise RuntimeError("transformers did not take the package's function")
rows = demo.run_demo()
assert {name: getattr(module, name) for name in demo.replaced("qwen3_next")} == before
assert sys.modules["fla"] is fla and "causal_conv1d" in sys.modules
assert not [name for name in sys.modules if "without_kernels" in name]
print(*(row.passed and row.difference > 0 for row in rows))
"""


def test_transformers_own_path_runs_where_packages_with_gpu_kernels_are_installed(tmp_path):
    for place, names in (
        ("fla/ops/gated_delta_rule", "chunk_gated_delta_rule = fused_recurrent_gated_delta_rule"),
        ("causal_conv1d", "causal_conv1d_fn = causal_conv1d_update"),
    ):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        for parent in (folder, *folder.relative_to(tmp_path).parents):
            (tmp_path / parent / "__init__.py").touch()
        (folder / "__init__.py").write_text(KERNELS.format(names=names))
    (tmp_path / "__init__.py").unlink()
    paths = (str(tmp_path), str(Path(__file__).parents[2]))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITH_KERNELS], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * len(NAMES)


@pytest.mark.parametrize(
    ("difference", "equal", "calls", "passed"),
    [(1.0, None, 1, True), (2.0, True, 1, True), (2.1, None, 1, False), (1.0, False, 1, False), (1.0, True, 0, False)],
)
def test_a_row_passes_only_if_ours_ran_and_agrees(difference, equal, calls, passed):
    assert demo.DemoRow("row", difference, 2.0, equal, 0.1, calls).passed is passed
