"""The demo passes with our operators and fails with wrong ones."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from deltaproof.integrations import qwen3_next_demo as demo  # noqa: E402
from deltaproof.integrations.transformers import use_deltaproof  # noqa: E402
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend  # noqa: E402

pytestmark = pytest.mark.skipif(demo.why_not() is not None, reason=str(demo.why_not()))

NAMES = ["prefill", "cached generation", "left-padded batch", "gradients"]


class ScaleOffByAThousandth(TorchBackend):
    def chunk(self, call):
        return super().chunk(self._wrong(call))

    def recurrent(self, call):
        return super().recurrent(self._wrong(call))

    def _wrong(self, call):
        options = dataclasses.replace(call.options, scale=call.options.scale * 1.001)
        return dataclasses.replace(call, options=options)


class StateForgotten(TorchBackend):
    def recurrent(self, call):
        return super().recurrent(dataclasses.replace(call, initial_state=None))


def test_every_row_passes_and_our_operators_ran():
    rows = demo.run_demo()
    assert [row.name for row in rows] == NAMES
    # Three linear layers; generation adds one step a layer for each new token but the first.
    steps = 3 * (demo.NEW_TOKENS - 1)
    assert [row.calls for row in rows] == [3, 3 + steps, 6 + steps, 3]
    assert [row.tokens_equal for row in rows] == [None, True, True, None]
    assert all(row.passed and row.difference > 0 for row in rows)


def test_a_scale_that_is_off_by_a_thousandth_fails_every_row():
    rows = demo.run_demo(backend=ScaleOffByAThousandth())
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


@pytest.mark.parametrize(
    ("difference", "equal", "calls", "passed"),
    [(1.0, None, 1, True), (2.0, True, 1, True), (2.1, None, 1, False), (1.0, False, 1, False), (1.0, True, 0, False)],
)
def test_a_row_passes_only_if_ours_ran_and_agrees(difference, equal, calls, passed):
    assert demo.DemoRow("row", difference, 2.0, equal, 0.1, calls).passed is passed
