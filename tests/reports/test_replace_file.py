"""A result is replaced whole or not at all."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from deltaproof.reports import replace_file as module
from deltaproof.reports.replace_file import replace_file


def test_it_makes_and_replaces_a_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "result.json"
    for text in ("first\n", "secønd\n"):
        replace_file(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_ends_half_way_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    replace_file(path, "whole\n")

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        replace_file(path, "half")
    assert path.read_text() == "whole\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    replace_file(link, "new")
    assert link.is_symlink() and target.read_text() == "new"


def test_what_is_no_file_is_written_to_and_stays_what_it_is(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    replace_file(pipe, "through")
    reader.join(timeout=10)
    assert got == ["through"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError):
        replace_file(tmp_path / "no" / "result.json", "text")
