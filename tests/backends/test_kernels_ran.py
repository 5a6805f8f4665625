"""What a recording sees of a call, and that it leaves nothing behind."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

pytest.importorskip("triton")

from triton.runtime.jit import JITFunction

from deltaproof.backends.adapters import kernels_ran
from deltaproof.backends.adapters.kernels_ran import Recording


class Kernel:
    def __init__(self, name: str, module: str = "peer.ops") -> None:
        def fn() -> None: ...

        fn.__module__, fn.__name__ = module, name
        self.fn = fn

    def run(self, *arguments: Any, grid: Any = None) -> str:
        return f"{self.fn.__name__}{arguments}{grid}"


class Dispatched:
    backend_type = "fast"

    def get_implementation(self, function: str) -> Any:
        return {"forward": len}.get(function)


@pytest.fixture(autouse=True)
def launchers(monkeypatch):
    monkeypatch.setattr(kernels_ran, "_launchers", lambda: [Kernel])


def test_triton_launches_its_kernels_through_what_is_watched(monkeypatch):
    monkeypatch.undo()

    def add(x, y):
        pass

    made = JITFunction(add)
    (kind,) = [kind for kind in kernels_ran._launchers() if kind is JITFunction]
    assert made.fn is add
    seen = []
    monkeypatch.setattr(kind, "run", lambda self, *arguments, **options: seen.append((self, arguments)))
    made[(1,)](2, 3)
    assert seen == [(made, (2, 3))]


def test_kernels_are_named_once_in_the_order_of_their_launch_and_run_as_they_would():
    with Recording() as recording:
        assert Kernel("second").run(1, grid=2) == "second(1,)2"
        Kernel("first").run()
        Kernel("second").run()
    assert recording.names() == ("peer.ops.second", "peer.ops.first")
    Kernel("third").run()
    assert len(recording.kernels) == 2, "the recording has ended"


def test_a_pick_is_what_an_implementation_came_back_for():
    with Recording(Dispatched) as recording:
        assert Dispatched().get_implementation("forward") is len
        assert Dispatched().get_implementation("backward") is None
    assert recording.names() == ("fast:forward",)


def test_what_is_foreign_is_named():
    with Recording(Dispatched) as recording:
        Kernel("own").run()
        Kernel("fused", "another.ops").run()
        Kernel("near", "peer_of_another").run()
        Dispatched().get_implementation("forward")
    kernels = ["another.ops.fused", "peer_of_another.near"]
    assert recording.foreign("peer", frozenset()) == [*kernels, "fast for forward"]
    assert recording.foreign("peer", frozenset({"fast"})) == kernels
    assert recording.foreign("peer", None) == []


def test_the_first_import_of_a_watched_package_is_noted(tmp_path, monkeypatch):
    (tmp_path / "a_rare_package.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    first, second = (Recording(watched=("a_rare_package", "json", "not_there")) for _ in range(2))
    with first:
        import a_rare_package  # noqa: F401
    with second:
        import json  # noqa: F401
    monkeypatch.delitem(sys.modules, "a_rare_package")
    assert (first.imported, second.imported) == (("a_rare_package",), ())
    assert first.foreign("peer", frozenset()) == ["package a_rare_package"]


def test_another_thread_is_not_seen():
    with Recording() as recording:
        thread = threading.Thread(target=Kernel("elsewhere").run)
        thread.start()
        thread.join()
        Kernel("here").run()
    assert recording.names() == ("peer.ops.here",)


def test_a_recording_that_was_left_open_is_ended_by_the_next():
    before = vars(Kernel)["run"]
    left = Recording()
    left.start()
    with Recording() as recording:
        Kernel("now").run()
    left.stop()
    assert (left.names(), recording.names()) == ((), ("peer.ops.now",))
    assert vars(Kernel)["run"] is before
