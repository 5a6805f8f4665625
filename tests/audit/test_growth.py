"""Generated files: the work grows as the file does, and what would grow faster is left out and named."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from deltaproof.audit import registry
from deltaproof.audit.flow import definitions, twins
from deltaproof.audit.flow.definitions import Definitions
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.source import LONG, Source
from deltaproof.audit.own_rules import OWN_RULES
from deltaproof.reports.audit_markdown import render
from deltaproof.reports.audit_summary import exit_code, rule_failures
from tests.audit.trees import HEAD, audit, lay_out

RULES = (*registry.all_rules(), *OWN_RULES)
BEFORE = (Path(definitions.__file__).parents[1] / "story" / "before.py").read_text()


def long_kernel(count):
    body = "".join(
        f"    v{n} = tl.load(p + {n} * stride + tl.arange(0, BK))\n"
        f"    tl.store(o + {n} * stride + tl.arange(0, BK), v{n})\n"
        for n in range(count)
    )
    return HEAD + "@triton.jit\ndef long(p, o, stride, BK: tl.constexpr):\n" + body


def chain(count):
    return HEAD + "".join(
        f"@triton.jit\ndef k{n}(x, N, BK: tl.constexpr):\n    return k{n + 1}(tl.exp(x) + 1, N, BK)\n"
        for n in range(count)
    )


def copies(count):
    return "".join(BEFORE.replace("recurrence", f"recurrence_{n}") for n in range(count))


def functions(count):
    return HEAD + "".join(
        f"def f{n}(a, b):\n    c = torch.empty(a) + {n}\n    return f{n + 1}(c, b)\n" for n in range(count)
    )


def conditions(count):
    steps = "".join(
        f"    if N > {n}:\n        x = x + {n}\n    tl.store(o + {n} + i, tl.load(x + i))\n" for n in range(count)
    )
    return HEAD + "@triton.jit\ndef many(x, o, N, BK: tl.constexpr):\n    i = tl.arange(0, BK)\n" + steps


def different(count):
    return HEAD + "".join(
        f"@triton.jit\ndef k{n}(p, o, N, BK: tl.constexpr):\n    i = tl.arange(0, BK)\n    m = i < N\n"
        + "".join(f"    x{step} = tl.load(p + {n if step % 2 else step} + i, mask=m)\n" for step in range(10))
        + "    tl.store(o + i, x1, mask=m)\n\n\n"
        for n in range(count)
    )


def calls_made(root, source):
    """Return how many Python functions an audit by all rules calls, which no load of the machine changes."""
    lay_out(root, {"big.py": source})
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        report = audit(root, rules=RULES)
    finally:
        sys.setprofile(None)
    assert report.not_analysed == []
    return count


@pytest.mark.parametrize(
    ("source", "size"),
    [(long_kernel, 200), (chain, 100), (copies, 30), (functions, 200)],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_twice_the_file_is_about_twice_the_work(tmp_path, source, size):
    calls_made(tmp_path / "warm", source(5))
    half, whole = calls_made(tmp_path / "half", source(size)), calls_made(tmp_path / "whole", source(2 * size))
    assert whole < 2.3 * half


@pytest.mark.parametrize(
    ("source", "size"),
    [(long_kernel, 2500), (chain, 3000), (copies, 150), (functions, 5000)],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_large_generated_files_take_seconds(tmp_path, source, size):
    lay_out(tmp_path, {"big.py": source(size)})
    begun = time.process_time()
    report = audit(tmp_path, rules=RULES)
    assert time.process_time() - begun < 12
    assert report.not_analysed == []


def test_a_use_asks_only_the_statements_that_define_its_name(monkeypatch, tmp_path):
    [function] = Module("big.py", Source(tmp_path, long_kernel(2500), [])).functions
    asked = 0
    look = Definitions._in

    def counted(self, statement, name):
        nonlocal asked
        asked += 1
        return look(self, statement, name)

    monkeypatch.setattr(Definitions, "_in", counted)
    for n, store in enumerate(function.node.body[1::2]):
        [found] = function.flow.reaching(f"v{n}", store)
        assert found.node is function.node.body[2 * n]
        assert [each.kind for each in function.flow.reaching("stride", store)] == ["param"]
    assert asked == 2500


def test_too_many_definitions_stop_a_rule_and_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(definitions, "MOST_MANY", 1000)
    few = audit(lay_out(tmp_path / "few", {"a.py": conditions(30)}), rules=RULES)
    assert few.not_analysed == []
    many = audit(lay_out(tmp_path / "many", {"a.py": conditions(100) + copies(1)}), rules=RULES)
    names = {item.reason.partition(" stopped: ")[0] for item in many.not_analysed}
    assert {"rule unmasked-load", "rule racing-store"} <= names
    assert {item.path for item in many.not_analysed} == {"a.py"}
    assert all("definitions" in item.reason and "`many` (a.py, line 6)" in item.reason for item in many.not_analysed)
    assert many.checked == ["a.py"]
    assert rule_failures(many) == []


def test_a_stopped_rule_does_not_call_an_ignore_comment_unused(monkeypatch, tmp_path):
    comment = "# deltaproof: ignore[unmasked-load] the buffer is padded\n"
    few, many = (lay_out(tmp_path / str(count), {"a.py": comment + conditions(count)}) for count in (5, 100))
    assert [item.name for item in audit(few, rules=RULES).findings] == ["unused-suppression"]
    monkeypatch.setattr(definitions, "MOST_MANY", 1000)
    report = audit(many, rules=RULES)
    assert "rule unmasked-load stopped" in " ".join(item.reason for item in report.not_analysed)
    assert report.findings == []


def test_kernels_past_the_limit_of_comparisons_are_named(monkeypatch, tmp_path):
    tree = lay_out(tmp_path, {"a.py": different(60)})
    assert audit(tree, rules=RULES).not_analysed == []
    monkeypatch.setattr(twins, "MOST_COMPARED", 10_000)
    report = audit(tree, rules=RULES)
    [left] = report.not_analysed
    assert left.path == "a.py"
    assert left.reason.startswith("rule fixed-twin stopped: too many kernels to compare; from line ")
    assert exit_code(report) == (1 if report.findings else 0)
    assert ", but a rule stopped |" in render(report)


@pytest.mark.parametrize("size", [0, LONG])
def test_calls_are_found_in_short_and_long_texts_alike(tmp_path, size):
    text = "f(a)\nmy_g(b)\nC.apply(x)\nh [0]\n((k)(1))\n" + "# " + "x" * size + "\n"
    source = Source(tmp_path, text, text.split("\n"))
    asked = ("f", "my_g", "g", "apply", "C.apply", "D.apply", "h", "k", "b")
    assert [name for name in asked if source.calls(name)] == [name for name in asked if f"{name}(" in text]


def test_a_word_of_a_million_letters_is_read(tmp_path):
    text = HEAD + f"CODE = '{'ab' * 500_000}'\n\n\ndef run(x):\n    kernel[(1,)](x)\n" + chain(1)[len(HEAD) :]
    begun = time.process_time()
    assert audit(lay_out(tmp_path, {"a.py": text}), rules=RULES).not_analysed == []
    assert time.process_time() - begun < 10
