"""HZ501: seeds and draws that differ by rank."""

from __future__ import annotations

import textwrap

import pytest

from deltaproof.audit.rules.hz501_rank_divergent_random import RULE
from tests.audit.rules.snippets import drops, examples, hits

SAMPLER = """
import torch.distributed as dist


class Sampler:
    def sample(self, logits, generator):
        noise = torch.rand_like(logits{how})
        tokens = (logits - noise.log().neg().log()).argmax(-1)
        {after}
        return tokens
"""


def sampler(how: str = "", after: str = "pass") -> str:
    return SAMPLER.replace("{how}", how).replace("{after}", after)


def test_the_examples_of_its_docs() -> None:
    bad, good = examples(RULE)
    assert [hit.verdict for hit in hits(RULE, bad)] == ["likely"]
    assert hits(RULE, good) == []


@pytest.mark.parametrize("seed", ["seed + rank", "self.seed + self.tp_rank", "seed + 17 * dist.get_rank()"])
def test_a_seed_that_depends_on_the_rank(seed: str) -> None:
    code = f"import torch.distributed as dist\ndef prepare(self, seed, rank):\n    torch.manual_seed({seed})\n"
    assert len(hits(RULE, code)) == 1


@pytest.mark.parametrize("seed", ["seed", "seed + self.dp_rank", "seed + worker_rank"])
def test_seeds_that_are_shared_or_of_data_parallel_ranks(seed: str) -> None:
    code = f"# every rank\ndef prepare(self, seed, rank, worker_rank):\n    torch.manual_seed({seed})\n"
    assert hits(RULE, code) == []


def test_a_rank_behind_a_name() -> None:
    code = """
    import torch.distributed as dist
    def prepare(seed):
        mine = seed + dist.get_rank()
        torch.manual_seed(mine)
    """
    assert len(hits(RULE, code)) == 1


def test_a_samplers_draw_from_the_default_generator() -> None:
    assert [hit.verdict for hit in hits(RULE, sampler())] == ["possible"]


def test_a_generator_or_a_broadcast_makes_the_ranks_agree() -> None:
    assert hits(RULE, sampler(how=", generator=generator")) == []
    agreed = sampler(after="dist.broadcast(tokens, src=0)")
    assert hits(RULE, agreed) == []
    assert [drop.reason for drop in drops(RULE, agreed)] == ["the ranks agree at line 12"]


@pytest.mark.parametrize("path", ["tests/test_sampler.py", "benchmarks/sampler.py", "examples/sampler.py"])
def test_silent_in_tests_benchmarks_and_examples(path: str) -> None:
    assert hits(RULE, sampler(), name=path) == []


@pytest.mark.parametrize("name", ["__init__", "init_weights", "test_sample", "make_inputs", "create_dummy_inputs"])
def test_silent_in_initialisers_self_tests_and_made_up_data(name: str) -> None:
    code = sampler().replace("def sample(", f"def {name}(")
    assert hits(RULE, code) == []


def test_silent_in_docstrings_and_below_main() -> None:
    code = '''
    import torch.distributed as dist
    def sample(probs, rank):
        """Example:
            >>> torch.manual_seed(rank)
            >>> torch.multinomial(torch.rand(4), 1)
        """
        return probs.argmax(-1)

    if __name__ == "__main__":
        def sample_all(rank):
            torch.manual_seed(rank)
            return torch.multinomial(torch.rand(4), 1)
    '''
    assert hits(RULE, code) == []


def test_silent_where_nothing_is_sampled_or_nothing_is_parallel() -> None:
    assert hits(RULE, sampler().replace("sample", "project").replace("Sampler", "Head")) == []
    assert hits(RULE, sampler().replace("import torch.distributed as dist", "")) == []


def test_a_distribution_is_no_process_group():
    code = """
    def sample(self, probs):
        dist = torch.distributions.Categorical(probs=probs)
        keep = dist.entropy() < 1.0
        return torch.multinomial(probs, 1) * keep
    """
    assert hits(RULE, code) == []
    assert len(hits(RULE, "import torch.distributed as dist\n" + textwrap.dedent(code))) == 1


def test_every_rank_shuffles_a_data_set_of_its_own():
    code = """
    class {name}:
        def __iter__(self):
            g = torch.Generator()
            g.manual_seed(self.epoch + self.rank)
            return iter(torch.randperm(8, generator=g))
    """
    assert hits(RULE, code.format(name="BufferedDataset")) == []
    assert len(hits(RULE, code.format(name="Denoiser"))) == 1
