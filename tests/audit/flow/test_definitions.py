"""Definitions reach uses as control flow says, and expressions are followed back through them."""

from __future__ import annotations

import ast
from pathlib import Path
from textwrap import dedent

import pytest

from deltaproof.audit.flow.access import accesses
from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.trace import addends, alternatives, conjuncts, factors, origins, resolved
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.project import Project


@pytest.fixture
def function(tmp_path: Path):
    def function(text: str) -> Function:
        path = tmp_path / "module.py"
        path.write_text(dedent(text))
        return Project(tmp_path, [path]).module(path).functions[0]

    return function


def use(function: Function, name: str = "x") -> ast.Name:
    """Return the argument of the call ``use(x)``."""
    (call,) = function.calls_of("use")
    assert isinstance(call.args[0], ast.Name) and call.args[0].id == name
    return call.args[0]


def reaching(function: Function) -> list[str]:
    """Return the definitions that reach ``use(x)``, as text."""
    at = use(function)
    found = function.flow.reaching("x", at)
    return sorted("param" if each.kind == "param" else ast.unparse(each.value) for each in found)


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("use(x)", ["param"]),
        ("x = 1\n    x = 2\n    use(x)", ["2"]),
        ("if c:\n        x = 1\n    use(x)", ["1", "param"]),
        ("if c:\n        x = 1\n    else:\n        x = 2\n    use(x)", ["1", "2"]),
        ("if c:\n        x = 1\n        return\n    use(x)", ["param"]),
        ("if c:\n        x = 1\n    else:\n        x = 2\n        use(x)", ["2"]),
        ("x = 0\n    for i in c:\n        use(x)\n        x = 1", ["0", "1"]),
        ("x = 0\n    for i in c:\n        x = 1\n    use(x)", ["0", "1"]),
        ("x = 0\n    while c:\n        x = 1\n        use(x)", ["1"]),
        ("for x in c:\n        use(x)", ["c"]),
        ("with c as x:\n        use(x)", ["c"]),
        ("try:\n        x = 1\n    except E:\n        x = 2\n    use(x)", ["1", "2", "param"]),
        ("x, y = 1, 2\n    use(x)", ["1"]),
        ("x += 5\n    use(x)", ["x + 5"]),
        ("def f():\n        x = 9\n    use(x)", ["param"]),
    ],
)
def test_definitions_reach_a_use(function, body, want):
    assert reaching(function(f"def f(x, c):\n    {body}\n")) == want


def test_an_augmented_pointer_is_followed_to_the_parameter(function):
    found = function("def f(x, i, s):\n    j = i * s\n    x += j\n    x += 4\n    use(x)\n")
    assert sorted(map(ast.unparse, addends(found, use(found)))) == ["4", "i * s", "x"]


def test_a_pointer_that_grows_in_a_loop_ends(function):
    found = function("def f(x, n):\n    for i in range(n):\n        x += n\n        use(x)\n")
    terms = list(map(ast.unparse, addends(found, use(found))))
    assert terms.count("n") >= 1 and len(terms) < 64


def test_origins_name_parameters_calls_and_constants(function):
    found = function("def f(p, q, T):\n    i = program_id(0) * 8\n    x = p + i if q else p\n    use(x)\n")
    seen = origins(found, use(found))
    assert seen.params == {"p", "q"} and seen.calls_any("program_id") and 8 in seen.constants
    assert "T" not in seen.names


def test_masks_products_and_names_are_taken_apart(function):
    found = function(
        "def f(a, b, T, K):\n    m = (a < T)[:, None] & (b < K)[None, :]\n    n = m\n    x = n\n    use(x)\n"
    )
    assert list(map(ast.unparse, conjuncts(found, use(found)))) == ["a < T", "b < K"]
    found = function("def f(a, b, c):\n    h = a * b\n    x = h * c\n    use(x)\n")
    assert list(map(ast.unparse, factors(found, use(found)))) == ["a", "b", "c"]


def test_a_name_with_two_values_is_not_resolved_but_has_alternatives(function):
    found = function("def f(c):\n    x = a()\n    if c:\n        x = b()\n    use(x)\n")
    assert isinstance(resolved(found, use(found)), ast.Name)
    assert sorted(map(ast.unparse, alternatives(found, use(found)))) == ["a()", "b()"]


def test_guards_hold_where_a_statement_runs(function):
    found = function(
        """
        def f(x, n, T):
            assert n > 0
            if x < 0:
                return
            if n == 1:
                pass
            else:
                for i in range(n):
                    if i >= T:
                        continue
                    y = use(x) if T else 0
        """
    )
    (call,) = found.calls_of("use")
    seen = {(ast.unparse(guard.test), guard.holds, guard.kind) for guard in guards(found, call)}
    assert seen == {
        ("T", True, "conditional"),
        ("i >= T", False, "early exit"),
        ("n == 1", False, "if"),
        ("x < 0", False, "early exit"),
        ("n > 0", True, "assert"),
    }


def test_accesses_of_a_kernel_have_base_ranges_and_conditions(function):
    kernel = function(
        """
        @triton.jit
        def kernel(q, o, T, H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr):
            import triton
            import triton.language as tl
            i = tl.program_id(0)
            q += i * H * K
            at = tl.arange(0, BK)
            inside = at < K
            b = tl.load(q + at, mask=inside, other=0)
            p = tl.make_block_ptr(o + i * K, (T, K), (H * K, 1), (0, 0), (16, BK), (1, 0))
            tl.store(p, b, boundary_check=(0,))
            tl.atomic_add(o + at, b, mask=inside & (i < T))
        """
    )
    load, store, atomic = accesses(kernel)
    assert (load.kind, load.base, [ast.unparse(each.extent) for each in load.ranges]) == ("load", "q", ["BK"])
    assert list(map(ast.unparse, load.conditions)) == ["at < K"] and load.other.value == 0
    assert store.block is not None and ast.unparse(store.block.shape) == "(T, K)" and store.base == "o"
    assert ast.unparse(store.boundary_check) == "(0,)"
    assert (atomic.kind, len(atomic.conditions)) == ("atomic", 2)
