"""HZ502: collectives that some ranks never call, and roots outside the group."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz502_rank_dependent_collective import RULE
from tests.audit.rules.snippets import drops, examples, hits

GUARDED = """
import torch.distributed as dist


def step(x, rank, tp_rank, pp_rank, tp_group, ranks):
    {first}
        {second}
    {third}
    return x
"""


def guarded(first: str, second: str, third: str = "pass") -> str:
    return GUARDED.replace("{first}", first).replace("{second}", second).replace("{third}", third)


def test_the_examples_of_its_docs() -> None:
    bad, good = examples(RULE)
    assert [hit.verdict for hit in hits(RULE, bad)] == ["likely"]
    assert hits(RULE, good) == []


@pytest.mark.parametrize("test", ["rank == 0", "dist.get_rank() == 0", "rank != 0", "x is not None and rank == 0"])
def test_a_collective_on_some_ranks(test: str) -> None:
    found = hits(RULE, guarded(f"if {test}:", "dist.all_reduce(x)"))
    assert len(found) == 1 and "only on some ranks" in found[0].message


def test_a_collective_behind_an_early_exit() -> None:
    assert len(hits(RULE, guarded("if rank != 0:", "return x", "dist.barrier()"))) == 1


def test_the_other_ranks_call_it_elsewhere() -> None:
    arms = guarded("if rank == 0:", "dist.broadcast(x, src=0)", "else:\n        dist.broadcast(x, src=0)")
    assert hits(RULE, arms) == []
    turns = guarded(
        "if rank not in (-1, 0):", "dist.barrier()", "yield\n    if rank == 0:\n        dist.barrier()"
    ).replace("return x", "pass")
    assert hits(RULE, turns) == []
    assert any("the other ranks call" in drop.reason for drop in drops(RULE, turns))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("if pp_rank == 0:", "dist.all_reduce(x, group=tp_group)"),
        ("if rank in ranks:", "dist.all_reduce(x)"),
        ("if rank is None:", "dist.all_reduce(x)"),
        ("if rank == 0:", "dist.send(x, dst=1)"),
        ("if rank == 0:", "x = x.gather(0, x)"),
        ("if x.numel() == 0:", "dist.all_reduce(x)"),
    ],
)
def test_other_groups_other_tests_and_what_is_no_collective(first: str, second: str) -> None:
    assert hits(RULE, guarded(first, second)) == []


def test_the_group_of_the_tested_rank() -> None:
    assert len(hits(RULE, guarded("if tp_rank == 0:", "dist.all_reduce(x, group=tp_group)"))) == 1


@pytest.mark.parametrize(
    "call",
    [
        "dist.broadcast(x, src=root)",
        "dist.broadcast(x, src=root, group=None)",
        "dist.broadcast(x, src=dist.get_global_rank(group, root), group=group)",
        "dist.broadcast(x, group_src=root, group=group)",
        "dist.broadcast(x, src=root, group=self.world_group)",
    ],
)
def test_roots_that_are_global_ranks(call: str) -> None:
    assert hits(RULE, f"import torch.distributed as dist\ndef share(self, x, root, group):\n    {call}\n") == []
