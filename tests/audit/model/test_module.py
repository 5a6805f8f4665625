"""A module's functions, names, kernels and launches are found as Python would see them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from deltaproof.audit.model.module import Module, is_test_path
from deltaproof.audit.model.project import Project
from deltaproof.audit.model.source import Unreadable, parse, read


def module(tmp_path: Path, text: str, name: str = "package/kernels.py") -> Module:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
    return Project(tmp_path, [path]).module(path)


KERNELS = """
    import triton
    import triton.language as tl
    from triton import jit as compiled
    from triton.experimental import gluon
    import cutlass.cute as cute
    import tilelang.language as T

    @triton.autotune(configs=[], key=["N"])
    @triton.jit(do_not_specialize=["n"])
    def one(x, n, N: tl.constexpr, M: "tl.constexpr" = 4):
        pass

    @compiled
    def two(x): ...

    @gluon.jit
    def three(x): ...

    class Kernel:
        @cute.jit
        def run(self, x): ...

        @cute.kernel
        def kernel(self, x):
            def inner(): ...

    @T.prim_func
    def six(x): ...

    def host(x):
        one[(1,)](x, 3, N=8)
        table[0](x)
    """


def test_kernels_are_told_from_host_functions(tmp_path):
    found = module(tmp_path, KERNELS)
    kinds = {function.qualname: function.kind for function in found.functions}
    assert kinds == {
        "one": "triton",
        "two": "triton",
        "three": "gluon",
        "Kernel.run": "cute",
        "Kernel.kernel": "cute",
        "Kernel.kernel.inner": "",
        "six": "tilelang",
        "host": "",
    }
    one = found.by_qualname["one"]
    assert one.decorator("autotune") is not None and one.decorator("heuristics") is None
    assert [(param.name, param.constexpr) for param in one.params] == [
        ("x", False),
        ("n", False),
        ("N", True),
        ("M", True),
    ]
    inner = found.by_qualname["Kernel.kernel.inner"]
    assert inner.outer is found.by_qualname["Kernel.kernel"] and inner.owner is None
    assert found.by_qualname["Kernel.run"].owner is not None


def test_a_launch_is_bound_to_the_parameters_of_its_kernel(tmp_path):
    found = module(tmp_path, KERNELS)
    first = found.launches[0]
    kernel = found.by_qualname["one"]
    bound = first.bound(kernel)
    assert set(bound) == {"x", "n", "N"} and bound["n"].value == 3
    # a table of functions looks the same; only what is launched tells
    assert [launch.name for launch in found.launches] == ["one", "table"]
    project = Project(tmp_path, [tmp_path / found.path])
    assert [project.kernel_of(launch) is not None for launch in found.launches] == [True, False]


def test_kernels_are_found_across_files_and_re_exports(tmp_path):
    (tmp_path / "pkg/ops").mkdir(parents=True)
    (tmp_path / "pkg/__init__.py").write_text("")
    (tmp_path / "pkg/ops/__init__.py").write_text("from .kernels import scale_kernel as scale\n")
    (tmp_path / "pkg/ops/kernels.py").write_text("import triton\n@triton.jit\ndef scale_kernel(x): ...\n")
    (tmp_path / "pkg/a.py").write_text("from .ops.kernels import scale_kernel\ndef f(x):\n    scale_kernel[(1,)](x)\n")
    (tmp_path / "pkg/b.py").write_text("from pkg.ops import scale\ndef g(x):\n    scale[(1,)](x)\n")
    project = Project(tmp_path, sorted(tmp_path.rglob("*.py")))
    kernel = project.named("pkg.ops.kernels").functions[0]
    for name in ("pkg.a", "pkg.b"):
        (launch,) = project.named(name).launches
        assert project.kernel_of(launch) is kernel, name
    assert [launch.host.qualname for launch in project.launches_of(kernel)] == ["f"]
    assert project.function("pkg.ops.nothing") is None


def test_names_are_followed_through_aliases(tmp_path):
    found = module(
        tmp_path, "import torch.nn.functional as F\nfrom . import sibling\nfrom ..up import x as y\nF.pad(y)\n"
    )
    call = found.tree.body[-1].value
    assert found.resolve(call.func) == "torch.nn.functional.pad"
    assert found.imports["sibling"] == "package.sibling" and found.imports["y"] == "up.x"


def test_what_runs_only_as_a_script_is_known(tmp_path):
    found = module(tmp_path, "x = 1\nif __name__ == '__main__':\n    x = 2\n")
    assert found.in_main(found.tree.body[1].body[0]) and not found.in_main(found.tree.body[0])


@pytest.mark.parametrize(
    ("path", "test"),
    [
        ("tests/ops/test_x.py", True),
        ("pkg/benchmarks/run.py", True),
        ("pkg/x_test.py", True),
        ("conftest.py", True),
        ("examples/a.py", False),
        ("pkg/testing_tools/a.py", False),
        ("pkg/latest.py", False),
    ],
)
def test_tests_and_benchmarks_are_known_by_their_path(path, test):
    assert is_test_path(path) is test


def test_an_example_is_code_where_it_has_a_kernel_of_its_own(tmp_path):
    kernel = "import triton\n\n@triton.jit\ndef f(x):\n    pass\n"
    assert module(tmp_path, "x = 1\n", "examples/run.py").is_test
    assert not module(tmp_path, kernel, "examples/kernel.py").is_test
    assert module(tmp_path, kernel, "examples/tests/kernel.py").is_test


class TestReading:
    def test_encodings(self, tmp_path):
        for name, data in {
            "bom": b"\xef\xbb\xbfx = '\xc3\xa9'\n",
            "latin": "# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"),
            "dos": b"x = '\xc3\xa9'\r\ny = 1\r\n",
        }.items():
            path = tmp_path / f"{name}.py"
            path.write_bytes(data)
            assert "é" in read(path).text and "\r" not in read(path).text, name
            parse(read(path))

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"x = '\xff'\n", "decoded"),
            (b"x = \0\n", "NUL"),
            (b"# coding: nonsense\n", "decoded"),
            (b"def f(:\n", "syntax error in line 1"),
            (b"(" * 500 + b")" * 500, "nested|syntax"),
            (b"x = " + b"-" * 20000 + b"1\n", "nested"),
        ],
        ids=["bytes", "nul", "unknown encoding", "syntax", "brackets", "minus"],
    )
    def test_what_cannot_be_analysed_says_why(self, tmp_path, data, reason):
        path = tmp_path / "bad.py"
        path.write_bytes(data)
        with pytest.raises(Unreadable, match=reason):
            parse(read(path))

    def test_a_missing_file_says_so(self, tmp_path):
        with pytest.raises(Unreadable, match="cannot be read: No such file"):
            read(tmp_path / "none.py")
