"""HZ402: options that one call, branch or direction honours and its neighbour does not."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz402_unthreaded_option import RULE
from tests.audit.rules.snippets import hits

NEIGHBOURS = """
def states(k, v, offsets=None, indices=None):
    {made}
    return launch(k, v, offsets, indices)


def output(k, v, h, offsets=None, indices=None):
    return launch(k, v, h, indices)


def forward(k, v, offsets=None, indices=None):
    {before}
    h = states(k, v, offsets=offsets{given})
    return output(k, v, h, offsets=offsets, indices=indices)
"""


@pytest.mark.parametrize(
    ("made", "before", "given", "found"),
    [
        ("pass", "pass", "", 1),
        ("pass", "pass", ", indices=indices", 0),
        ("pass", "pass", ", indices=indices[1:]", 0),
        ("indices = prepare(offsets) if indices is None else indices", "pass", "", 0),
        ("return deeper(k, indices=indices)", "pass", "", 1),
        ("pass", "assert indices is None", "", 0),
    ],
)
def test_indices_that_one_of_two_calls_gets(made, before, given, found):
    seen = hits(RULE, NEIGHBOURS.format(made=made, before=before, given=given))
    assert [each.node.func.id for each in seen] == ["states"] * found


def test_an_option_that_is_no_sequence_is_left_alone():
    code = NEIGHBOURS.format(made="pass", before="pass", given="").replace("indices", "lower_bound")
    assert hits(RULE, code) == []


LIBRARY = """
from conv import convolve

def forward(self, x, w, seq_idx=None):
    y = convolve({x}, w)
    return scan(y, seq_idx=seq_idx)
"""


@pytest.mark.parametrize(("elsewhere", "found"), [("seq_idx=None", 0), ("seq_idx=seq_idx", 1), ("size=3", 0)])
def test_a_call_out_of_the_tree_takes_what_another_call_gives_it(elsewhere, found):
    other = f"from conv import convolve\n\ndef run(x, seq_idx):\n    return convolve(x, (1, 2), {elsewhere})\n"
    assert len(hits(RULE, LIBRARY.format(x="x"), other=other)) == found


PAIR = """
def norm_fwd(x, w, group_size=None):
    group_size = group_size or x.shape[-1]
    return x, group_size


def norm_bwd(dy, x, w, group_size=None{more}):
    group_size = group_size or x.shape[-1]
    return dy, group_size


class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, groups):
        return norm_fwd(x, w, group_size={size})

    @staticmethod
    def backward(ctx, dy):
        return norm_bwd(dy, ctx.x, ctx.w{given})
"""


@pytest.mark.parametrize(
    ("size", "more", "given", "found"),
    [
        ("x.shape[-1] // groups", "", "", 1),
        ("x.shape[-1] // groups", "", ", ctx.group_size", 0),
        ("x.shape[-1] // groups", "", ", **ctx.options", 0),
        ("None", "", "", 0),
    ],
)
def test_an_option_of_forward_that_backward_leaves_at_its_default(size, more, given, found):
    assert len(hits(RULE, PAIR.format(size=size, more=more, given=given))) == found


BRANCHES = """
def linear(x, w, scale, bias=None):
    if scale.numel() == 1:
        out = tensor_wise(x, w, scale)
        {first}
    elif {test}:
        out = x @ dequantise(w, scale).T
        {second}
    else:
        {last}
    return out
"""


@pytest.mark.parametrize(
    ("first", "test", "second", "last", "lines"),
    [
        ("out = out + bias if bias is not None else out", "w.ndim == 2", "pass", "raise ValueError", [10]),
        ("out = out + bias if bias is not None else out", "w.ndim == 2", "out += bias", "raise ValueError", []),
        ("out = out + bias if bias is not None else out", "bias is None", "pass", "raise ValueError", []),
        ("out = out + bias", "w.ndim == 2", "assert bias is None", "raise ValueError", []),
        ("pass", "w.ndim == 2", "pass", "out = linear_with(x, w, bias)", [7, 10]),
        ("pass", "w.ndim == 2", "pass", "out = x @ w", []),
    ],
)
def test_a_bias_that_one_branch_leaves_out(first, test, second, last, lines):
    seen = hits(RULE, BRANCHES.format(first=first, test=test, second=second, last=last))
    assert [each.node.lineno for each in seen] == lines


def test_a_bias_that_is_added_behind_the_branches():
    code = BRANCHES.format(first="out = out + bias", test="w.ndim == 2", second="pass", last="raise ValueError")
    assert hits(RULE, code.replace("return out", "return out if bias is None else out")) == []


PLACES = """
import functools


class Wrapper:
    def run(self, q, cache, *args, k_scale=None, v_scale=None, return_lse=False):
        return attend(q, cache, args, k_scale, v_scale, return_lse)

    run_return_lse = functools.partialmethod(run, return_lse=True)

    def forward(self, q, cache, k_scale=None, v_scale=None):
        return self.{call}
"""


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("run(q, cache, k_scale, v_scale)", 1),
        ("run_return_lse(q, cache, k_scale, v_scale)", 1),
        ("run(q, cache, k_scale=k_scale, v_scale=v_scale)", 0),
        ("run(q, cache)", 0),
    ],
)
def test_options_by_place_that_are_taken_by_name(call, found):
    assert len(hits(RULE, PLACES.format(call=call))) == found


LAUNCH = """
@triton.heuristics({{"varlen": lambda args: args["offsets"] is not None}})
@triton.jit
def kernel(x, y, offsets, indices, size, varlen: tl.constexpr):
    tl.store(y, tl.load(x))


def run(x, offsets):
    y = torch.empty_like(x)
    {indices} = prepare(offsets)
    kernel[(1,)]({given})
    return y
"""


@pytest.mark.parametrize(
    ("indices", "given", "found"),
    [
        ("indices", "x=x, y=y, offsets=offsets, size=3", 1),
        ("chunks", "x=x, y=y, offsets=offsets, size=3", 0),
        ("indices", "x, y, offsets, indices, 3", 0),
        ("indices", "x, y, **more", 0),
    ],
)
def test_a_launch_without_an_argument_that_the_host_has(indices, given, found):
    assert len(hits(RULE, LAUNCH.format(indices=indices, given=given))) == found


COLLECTED = """
def chunk_loss(student, teacher, loss_fn=None, {rest}):
    {before}
    return {call}
"""


@pytest.mark.parametrize(
    ("rest", "before", "call", "found"),
    [
        ("**loss_kwargs", "pass", "loss_fn(student, teacher)", 1),
        ("**fn_kwargs", "pass", "loss_fn(student, teacher)", 1),
        ("**loss_options", "pass", "compute_loss(student, teacher)", 1),
        ("**loss_kwargs", "pass", "loss_fn(student, teacher, **loss_kwargs)", 0),
        ("**loss_kwargs", "check(loss_kwargs)", "loss_fn(student, teacher)", 0),
        ("**_loss_kwargs", "pass", "loss_fn(student, teacher)", 0),
        ("**kwargs", "pass", "loss_fn(student, teacher)", 0),
        ("**model_kwargs", "pass", "loss_fn(student, teacher)", 0),
    ],
)
def test_collected_keywords_reach_what_they_are_named_after(rest: str, before: str, call: str, found: int) -> None:
    assert len(hits(RULE, COLLECTED.format(rest=rest, before=before, call=call))) == found


def test_a_wrapper_hands_on_both_kinds_of_arguments():
    code = "def run(fn, *args, **kwargs):\n    return fn(*args{more})\n"
    assert len(hits(RULE, code.format(more=""))) == 1
    assert hits(RULE, code.format(more=", **kwargs")) == []
    assert hits(RULE, code.format(more=", causal=True")) == []


ATTACHED = """
def both(layer):
    w, s = layer.weight, layer.scale
    if layer.kind == "fp8":
        s.block_size = layer.block_size
    if layer.disabled:
        return w, s
    return w, s, layer.a


def biased(layer):
    w, s = layer.weight, layer.scale
    {early}
    if {test}:
        return w, s, layer.bias
    {between}
    if layer.kind == "fp8":
        s.block_size = layer.block_size
    return w, s, layer.a, layer.bias
"""


@pytest.mark.parametrize(
    ("early", "test", "between", "found"),
    [
        ("pass", "layer.disabled", "pass", 1),
        ("pass", "layer.merged", "pass", 0),
        ("pass", "layer.disabled", "s = layer.other", 0),
        ("s.block_size = 128", "layer.disabled", "pass", 0),
    ],
)
def test_siblings_attach_a_setting_on_one_side_of_the_return(early: str, test: str, between: str, found: int) -> None:
    code = ATTACHED.format(early=early, test=test, between=between)
    assert len(hits(RULE, code)) == found
    assert hits(RULE, code.replace("return w, s, layer.bias", "return None")) == []
