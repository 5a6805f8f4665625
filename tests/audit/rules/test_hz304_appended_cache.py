"""appended-cache: a cache holds what it must, and no more."""

from __future__ import annotations

from deltaproof.audit.rules.hz304_appended_cache import RULE
from tests.audit.rules.snippets import examples, hits

COUNTED = """
class Cache:
    def update(self, new, layer_idx):
        if layer_idx == 0:
            self.seen_tokens += new.shape[1]

    def get_seq_length(self, layer_idx=0):
        return self.seen_tokens
"""
RESET = """
class Layer:
    def update(self, new):
        self.state = new

    def reset(self):
        pass
"""


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    assert len(hits(RULE, bad)) == 1
    assert hits(RULE, good) == []


def test_a_cut_after_the_concatenation_counts():
    bad, _ = examples(RULE)
    assert hits(RULE, bad + "        self.keys = self.keys[:, -window:]\n") == []


def test_a_counter_of_one_layer_that_every_layer_is_told():
    assert len(hits(RULE, COUNTED)) == 1
    assert hits(RULE, COUNTED.replace("return self.seen_tokens", "return self.layers[layer_idx].seen_tokens")) == []


def test_a_reset_that_does_nothing():
    assert len(hits(RULE, RESET)) == 1
    assert hits(RULE, RESET.replace("pass", "self.state = None")) == []
    assert hits(RULE, RESET.replace("self.state = new", "return new")) == []


def test_an_abstract_reset_is_for_others_to_write():
    assert hits(RULE, RESET.replace("    def reset", "    @abstractmethod\n    def reset")) == []
