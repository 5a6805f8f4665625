"""Every kind of slip makes exactly the texts it is meant to make."""

from __future__ import annotations

import textwrap

import pytest

from deltaproof.hazards import HAZARDS
from deltaproof.verify.source_mutants.generate import SourceMutant, mutants_of
from deltaproof.verify.source_mutants.operators import OPERATORS
from deltaproof.verify.source_mutants.source import Source

PARAMETERS = "x, y, n, slots, scale, at_k, at_v, H: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr"

# by operator: a body, and every change that this operator makes in it
EXAMPLES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "drop-mask-term": (
        "b = tl.load(x + n, mask=p[:, None] & (q & r), other=0.0)\nbits = (b >> 16) & 1 & -4\ntl.store(y, bits)",
        [("p[:, None] & (q & r)", "p[:, None]"), ("p[:, None] & (q & r)", "q & r"), ("q & r", "q"), ("q & r", "r")],
    ),
    "drop-load-mask": (
        "tl.store(y + n, tl.load(x + n, mask=p, other=0.0).to(tl.float32), mask=p)",
        [("tl.load(x + n, mask=p, other=0.0)", "tl.load(x + n)")],
    ),
    "drop-store-mask": (
        "tl.store(y + n, tl.load(x + n, mask=p, other=0.0), mask=p)",
        [
            (
                "tl.store(y + n, tl.load(x + n, mask=p, other=0.0), mask=p)",
                "tl.store(y + n, tl.load(x + n, mask=p, other=0.0))",
            )
        ],
    ),
    "swap-heads": (
        "at = n * HV + n % H\nheads = tl.arange(0, HV)\ntl.store(y + at, heads)",
        [("HV", "H"), ("H", "HV")],
    ),
    "swap-sizes": ("tl.store(y + n * K, 0.0, mask=n < V)", [("K", "V"), ("V", "K")]),
    "swap-strides": ("tl.store(y + n * at_k + n * at_v, scale)", [("at_k", "at_v"), ("at_v", "at_k")]),
    "drop-widening": (
        "n = tl.program_id(0).to(tl.int64)\ntl.store(y + n, scale.to(tl.float32))",
        [("tl.program_id(0).to(tl.int64)", "tl.program_id(0)")],
    ),
    "narrow-zero": (
        "n = tl.zeros([], tl.int64) + n\ntl.store(y + n, tl.zeros([4], tl.float32))",
        [("tl.int64", "tl.int32")],
    ),
    "shift-bound": (
        "p = (n >= 0) & (n < slots)\nif n == 0:\n    tl.store(y + n, scale, mask=p)",
        [("n >= 0", "n > 0"), ("n < slots", "n <= slots")],
    ),
    "short-range": (
        "for i in range(n):\n    for j in tl.static_range(0, K + 1, H):\n        tl.store(y + i + j, scale)",
        [("n", "n - 1"), ("K + 1", "K + 1 - H")],
    ),
    "drop-stride": (
        "value = tl.exp(scale) * scale\ntl.store(y + (n * HV + slots) * V, value)",
        [("(n * HV + slots) * V", "n * HV + slots"), ("n * HV", "n")],
    ),
    "drop-offset": (
        "y += n * K\ntl.store(y + (n + slots - 1) + k_at[:, None], scale + 1.0)",
        [
            ("y += n * K", "pass"),
            ("y + (n + slots - 1)", "y"),
            ("n + slots - 1", "n + slots"),
            ("n + slots", "n"),
            ("n + slots", "slots"),
        ],
    ),
    "drop-division": (
        "tl.store(y + n // (HV // H) + n % H, scale)",
        [("n // (HV // H)", "n"), ("HV // H", "HV"), ("n % H", "n")],
    ),
    "drop-factor": (
        "b = tl.sum(n) * scale * tl.exp(n)\nb *= scale\ntl.store(y + n * K, b)",
        [
            ("tl.sum(n) * scale * tl.exp(n)", "tl.sum(n) * scale"),
            ("tl.sum(n) * scale", "tl.sum(n)"),
            ("tl.sum(n) * scale", "scale"),
            ("b *= scale", "pass"),
        ],
    ),
    "drop-addend": (
        "b = scale - tl.exp(scale)\nb += tl.exp(b)\ntl.store(y + n, b)",
        [("scale - tl.exp(scale)", "scale"), ("scale - tl.exp(scale)", "-tl.exp(scale)"), ("b += tl.exp(b)", "pass")],
    ),
    "swap-difference": (
        "b = tl.exp(scale - (scale - 1.0))\ntl.store(y + (n - slots), b)",
        [("scale - (scale - 1.0)", "(scale - 1.0) - scale"), ("scale - 1.0", "1.0 - scale")],
    ),
    "drop-sign": ("tl.store(y + n, -tl.exp(scale) * -1.0)", [("-tl.exp(scale)", "tl.exp(scale)")]),
    "drop-transpose": ("tl.store(y + n, tl.trans(scale + 1.0))", [("tl.trans(scale + 1.0)", "scale + 1.0")]),
    "drop-limit": (
        "n = tl.minimum(n + 1, slots)\ntl.store(y + n, tl.exp(tl.maximum(scale, LIMIT)))",
        [("tl.minimum(n + 1, slots)", "n + 1"), ("tl.minimum(n + 1, slots)", "slots")],
    ),
    "drop-clamp": (
        "n = tl.minimum(n + 1, slots)\ntl.store(y + n, tl.exp(tl.maximum(scale, LIMIT)))",
        [("tl.maximum(scale, LIMIT)", "scale")],
    ),
    "drop-select": ("tl.store(y + n, tl.where(n > 0, scale, 0.0))", [("tl.where(n > 0, scale, 0.0)", "scale")]),
    "drop-upcast": ("tl.store(y + n, scale.to(tl.float32) + n.to(tl.int64))", [("scale.to(tl.float32)", "scale")]),
    "drop-store": ("tl.store(y + n, scale)\nn = tl.load(x)", [("tl.store(y + n, scale)", "pass")]),
    "drop-step": (
        "b = tl.load(x)\nb = normalized(b, n)\nc = normalized(b)\ntl.store(y, c)",
        [("b = normalized(b, n)", "pass")],
    ),
    "drop-barrier": ("tl.debug_barrier()\ntl.store(y, scale)", [("tl.debug_barrier()", "pass")]),
}


def source(body: str) -> Source:
    text = f"@triton.jit\ndef kernel({PARAMETERS}):\n{textwrap.indent(body, '    ')}\n"
    return Source(text, "some/triton_file")


def made(body: str, operator: str) -> list[SourceMutant]:
    return [mutant for mutant in mutants_of(source(body)) if mutant.operator == operator]


@pytest.mark.parametrize("name", [operator.name for operator in OPERATORS])
def test_it_makes_these_changes_and_no_other(name: str) -> None:
    body, expected = EXAMPLES[name]
    found = [(mutant.before, mutant.after) for mutant in made(body, name)]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_the_hazard_it_mirrors_is_in_the_catalogue(operator) -> None:
    assert operator.hazard is None or operator.hazard in HAZARDS
    assert operator.what


def test_only_the_place_of_the_edit_changes() -> None:
    text = "@triton.jit\ndef kernel(x, n):\n    # ≤ and → are more than a byte\n    a = x * n  # größer\n    return a\n"
    found = {mutant.after: Source(text, "f").apply(mutant.edit) for mutant in mutants_of(Source(text, "f"))}
    assert found["x"] == text.replace("x * n", "x")


def test_what_an_operand_loses_in_parentheses_it_gets_back() -> None:
    text = source("tl.store(y + n, (scale + 1.0) * tl.exp(scale) * n)")
    [mutant] = [item for item in mutants_of(text) if item.after == "scale + 1.0"]
    assert "tl.store(y + n, (scale + 1.0) * n)" in text.apply(mutant.edit)


def test_a_function_without_numbers_of_values_computes_offsets() -> None:
    found = {mutant.operator for mutant in mutants_of(source("first = n * K + H\nreturn first"))}
    assert found == {"drop-stride", "drop-offset", "swap-sizes"}


def test_functions_that_are_no_kernels_are_left_alone() -> None:
    assert not list(mutants_of(Source("def host(n):\n    return n * 2 + 1\n", "f")))


def test_a_guard_of_a_slot_mirrors_its_own_hazard() -> None:
    hazards = {mutant.hazard for mutant in made("tl.store(y, scale, mask=(slot >= 0) & inside)", "drop-mask-term")}
    assert hazards == {"padding-slot-address", "unmasked-load"}
