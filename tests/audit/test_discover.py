"""Which files are audited, and what is named as passed over."""

from __future__ import annotations

import os

import pytest

from deltaproof.audit.discover import default_root, discover
from deltaproof.contracts.errors import ContractError
from tests.audit.trees import lay_out


def found(root, *targets, exclude=()):
    result = discover(targets or [root], root, exclude)
    names = [path.relative_to(root).as_posix() for path in result.files]
    return names, {os.path.relpath(path, root): reason for path, reason in result.skipped}


def test_python_files_below_a_folder_are_found_in_order_each_once(tmp_path):
    lay_out(tmp_path, {"b.py": "", "a/z.py": "", "a/y.py": "", "a/data.json": "", "c.pyc": ""})
    assert found(tmp_path, tmp_path, tmp_path / "b.py", tmp_path / "a") == (["a/y.py", "a/z.py", "b.py"], {})


def test_folders_that_hold_nobodys_source_are_passed_over(tmp_path):
    names = (".git", "__pycache__", "node_modules", ".mypy_cache")
    lay_out(tmp_path, {f"{name}/x.py": "" for name in names} | {"a.py": ""})
    assert found(tmp_path) == (["a.py"], {})


@pytest.mark.parametrize("name", [".venv", "venv", "build", "dist", "site-packages"])
def test_folders_of_copies_are_skipped_and_named_unless_they_are_a_target(tmp_path, name):
    lay_out(tmp_path, {f"{name}/x.py": "", "a.py": ""})
    assert found(tmp_path) == (["a.py"], {name: f"folders named {name} are skipped unless they are a target"})
    assert found(tmp_path, tmp_path / name) == ([f"{name}/x.py"], {})


def test_a_link_that_loops_is_named_and_not_followed(tmp_path):
    lay_out(tmp_path, {"pkg/a.py": ""})
    (tmp_path / "pkg" / "up").symlink_to(tmp_path)
    (tmp_path / "pkg" / "self").symlink_to("self")
    (tmp_path / "pkg" / "me.py").symlink_to("me.py")
    (tmp_path / "pkg" / "gone.py").symlink_to("nowhere.py")
    names, skipped = found(tmp_path)
    assert names == ["pkg/a.py"]
    assert skipped == {
        "pkg/up": "a link to what is analysed elsewhere, or in a loop",
        "pkg/self": "a link in a loop",
        "pkg/me.py": "a link in a loop",
        "pkg/gone.py": "a link that leads nowhere",
    }


def test_a_link_to_outside_the_root_is_named_and_not_followed(tmp_path):
    lay_out(tmp_path, {"out/secret.py": "", "root/a.py": ""})
    (tmp_path / "root" / "folder").symlink_to(tmp_path / "out")
    (tmp_path / "root" / "file.py").symlink_to(tmp_path / "out" / "secret.py")
    names, skipped = found(tmp_path / "root")
    assert names == ["a.py"]
    assert skipped == {"folder": "a link to outside the root", "file.py": "a link to outside the root"}


def test_a_link_to_elsewhere_in_the_root_is_followed(tmp_path):
    lay_out(tmp_path, {"shared/s.py": "", "pkg/a.py": ""})
    (tmp_path / "pkg" / "shared").symlink_to(tmp_path / "shared")
    assert found(tmp_path, tmp_path / "pkg") == (["pkg/a.py", "pkg/shared/s.py"], {})


def test_what_looks_like_a_file_but_is_none_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    assert found(tmp_path) == ([], {"pipe.py": "not a regular file"})


def test_a_link_to_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    lay_out(tmp_path, {"pkg/a.py": ""})
    (tmp_path / "pkg" / "link.py").symlink_to(tmp_path / "pipe")
    assert found(tmp_path, tmp_path / "pkg") == (["pkg/a.py"], {"pkg/link.py": "not a regular file"})


def test_a_target_that_is_no_regular_file_is_named_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "zero.py").symlink_to("/dev/zero")
    targets = [tmp_path / "pipe.py", tmp_path / "zero.py"]
    assert found(tmp_path, *targets) == ([], dict.fromkeys(("pipe.py", "zero.py"), "not a regular file"))


def test_a_link_out_of_the_root_to_a_device_is_named_as_such(tmp_path):
    (tmp_path / "zero.py").symlink_to("/dev/zero")
    assert found(tmp_path) == ([], {"zero.py": "a link to outside the root"})


def test_a_target_that_is_not_python_is_named(tmp_path):
    lay_out(tmp_path, {"kernel.cu": "", "a.py": ""})
    assert found(tmp_path, tmp_path / "kernel.cu", tmp_path / "a.py") == (["a.py"], {"kernel.cu": "not a Python file"})


@pytest.mark.parametrize("pattern", ["gen", "gen/", "pkg/gen", "./pkg/gen", "/pkg/gen/", "pkg/gen/*.py", "*_pb2.py"])
def test_excluded_paths_are_named(tmp_path, pattern):
    lay_out(tmp_path, {"pkg/gen/x_pb2.py": "", "pkg/a.py": ""})
    names, skipped = found(tmp_path, exclude=[pattern])
    assert names == ["pkg/a.py"]
    assert list(skipped.values()) == ["excluded by the settings"]


def test_a_target_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ContractError, match="PATH: expected a file or a folder that exists"):
        discover([tmp_path / "none"], tmp_path)


def test_the_root_is_the_project_around_the_targets(tmp_path):
    lay_out(tmp_path, {"pyproject.toml": "", "src/pkg/__init__.py": "", "src/pkg/ops/__init__.py": ""})
    assert default_root([tmp_path / "src" / "pkg" / "ops"]) == tmp_path


def test_without_a_project_the_root_is_the_folder_that_packages_lie_in(tmp_path):
    lay_out(tmp_path, {"lib/pkg/__init__.py": "", "lib/pkg/ops/__init__.py": "", "lib/pkg/ops/a.py": ""})
    assert default_root([tmp_path / "lib" / "pkg" / "ops" / "a.py"]) == tmp_path / "lib"
