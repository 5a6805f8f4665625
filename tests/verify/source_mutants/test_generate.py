"""The mutants of the package's own kernels: each is a text of its own that parses, under a name that stays."""

from __future__ import annotations

import ast

import pytest

from deltaproof.verify.source_mutants.calls import runs
from deltaproof.verify.source_mutants.generate import generate
from deltaproof.verify.source_mutants.operators import OPERATORS
from deltaproof.verify.source_mutants.source import Source, sources

FILES = sources()
EVERY = generate(FILES)


def body(function: ast.FunctionDef) -> list[str]:
    return [ast.dump(statement) for statement in function.body]


def test_every_file_with_kernels_and_every_kind_of_slip_has_mutants() -> None:
    with_kernels = {name for name, source in FILES.items() if list(source.kernels())}
    assert {mutant.module for mutant in EVERY} == with_kernels
    assert {mutant.operator for mutant in EVERY} >= {
        "drop-mask-term",
        "swap-heads",
        "drop-widening",
        "shift-bound",
        "drop-factor",
        "drop-store",
    }


def test_the_ids_are_unique_and_name_file_function_operator_and_ordinal() -> None:
    assert len({mutant.id for mutant in EVERY}) == len(EVERY)
    names = {operator.name for operator in OPERATORS}
    for mutant in EVERY:
        stem, function, operator, ordinal = mutant.id.split(":")
        assert (FILES[mutant.module].stem, mutant.function) == (stem, function)
        assert operator in names
        assert int(ordinal) >= 1


def test_the_ids_do_not_depend_on_what_stands_above() -> None:
    source = FILES["deltaproof.ops.common.triton_inputs"]
    old, new = generate({"m": source}), generate({"m": Source(f"# one line\n\n{source.text}", source.stem)})
    assert [item.id for item in old] == [item.id for item in new]
    assert [item.line + 2 for item in old] == [item.line for item in new]


@pytest.mark.parametrize("module", [name for name, source in FILES.items() if list(source.kernels())])
def test_each_mutant_parses_and_changes_its_own_function(module: str) -> None:
    source = FILES[module]
    data = source.text.encode()
    kernels = {kernel.name: (source.span(kernel.node), body(kernel.node)) for kernel in source.kernels()}
    texts = set()
    for mutant in (item for item in EVERY if item.module == module):
        (start, end), before = kernels[mutant.function]
        assert start <= mutant.edit.start < mutant.edit.end <= end, mutant.id
        text = source.apply(mutant.edit).encode()
        assert text[:start] + text[len(text) - len(data) + end :] == data[:start] + data[end:], mutant.id
        [after] = ast.parse(text[start : len(text) - len(data) + end]).body
        assert isinstance(after, ast.FunctionDef)
        assert body(after) != before, mutant.id
        assert mutant.before != mutant.after
        texts.add(text)
    assert len(texts) == sum(item.module == module for item in EVERY)


def test_a_kernel_runs_the_helpers_it_calls_through_other_files() -> None:
    files = {
        name: Source(text, name.replace(".", "/"))
        for name, text in {
            "a": "@triton.jit\ndef inner(x):\n    return x\n\n\n@triton.jit\ndef other(x):\n    return x\n",
            "b": "from deltaproof.ops.a import inner as q\n\n\n@triton.jit\ndef middle(x):\n    return q(x)\n",
            "c": "from deltaproof.ops.b import middle\n\n\n@triton.jit\ndef kernel(x):\n    middle(x)\n",
        }.items()
    }
    found = runs(files)
    inner, middle, kernel = (
        ("deltaproof.ops.a", "inner"),
        ("deltaproof.ops.b", "middle"),
        ("deltaproof.ops.c", "kernel"),
    )
    assert found[kernel] == {kernel, middle, inner}
    assert found[inner] == {inner}
