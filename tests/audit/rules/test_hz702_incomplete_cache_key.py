"""incomplete-cache-key: two different things must not share an entry."""

from __future__ import annotations

from deltaproof.audit.rules.hz702_incomplete_cache_key import RULE
from tests.audit.rules.snippets import examples, hits

COMPILED = """
_KERNELS = {}

def run(q, scale):
    heads = q.shape[2]
    key = (scale, q.dtype, heads)
    if key not in _KERNELS:
        _KERNELS[key] = cute.compile(kernel, from_dlpack(q), heads, scale)
    return _KERNELS[key]
"""


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    assert len(hits(RULE, bad)) == 1
    assert "`heads`" in hits(RULE, bad)[0].message
    assert hits(RULE, good) == []


def test_a_whole_key_is_well():
    assert hits(RULE, COMPILED) == []


def test_the_dtype_is_part_of_the_key():
    found = hits(RULE, COMPILED.replace("q.dtype, ", ""))
    assert len(found) == 1
    assert "dtype" in found[0].message


def test_a_dtype_that_is_asserted_need_not_be_in_the_key():
    checked = COMPILED.replace("q.dtype, ", "").replace("    key", "    assert q.dtype == torch.bfloat16\n    key")
    assert hits(RULE, checked) == []


def test_a_starred_list_of_arguments_is_opened():
    starred = COMPILED.replace(", heads)", ")").replace(
        "        _KERNELS[key] = cute.compile(kernel, from_dlpack(q), heads, scale)",
        "        given = [from_dlpack(q), heads, scale]\n        _KERNELS[key] = cute.compile(kernel, *given)",
    )
    assert len(hits(RULE, starred)) == 1


def test_a_key_that_is_added_to_later_counts_whole():
    grown = COMPILED.replace(", heads)", ")").replace("    if key", "    key = key + (heads,)\n    if key")
    assert hits(RULE, grown) == []


def test_one_stride_of_several():
    one = COMPILED.replace("heads)\n", "heads, q.stride(0))\n", 1)
    assert "one stride of `q`" in hits(RULE, one)[0].message
    assert hits(RULE, one.replace("q.stride(0)", "q.stride()")) == []


def test_options_of_one_device_for_all():
    module = "SMS = torch.cuda.get_device_properties(0).multi_processor_count\n" + COMPILED.replace(
        "(scale, q.dtype, heads)", "(scale, q.dtype, heads, SMS)"
    )
    assert "device" in hits(RULE, module)[0].message
    assert hits(RULE, module.replace("heads, SMS)", "heads, SMS, q.device)")) == []


def test_an_address_is_given_to_the_next_object():
    cast = """
    _CASTS = {}

    def cast(t):
        key = (t.data_ptr(), t.shape)
        if key not in _CASTS:
            _CASTS[key] = t.to(torch.bfloat16)
        return _CASTS[key]
    """
    assert "`t` is freed" in hits(RULE, cast)[0].message
    assert len(hits(RULE, cast.replace("t.data_ptr()", "id(t)"))) == 1
    assert hits(RULE, cast.replace("t.to(torch.bfloat16)", "(t, t.to(torch.bfloat16))")) == []
    dropped = cast.replace("        return", "        weakref.finalize(t, _CASTS.pop, key, None)\n        return")
    assert hits(RULE, dropped) == []


def test_a_local_memo_by_address_is_well():
    walk = """
    def walk(nodes):
        seen = {}
        for node in nodes:
            seen[id(node)] = True
        return seen
    """
    assert hits(RULE, walk) == []


def test_a_binary_depends_on_the_compilers_options():
    key = """
    def make_key(code, target):
        return hashlib.sha256((code + target).encode()).hexdigest()
    """
    assert len(hits(RULE, key)) == 1
    assert (
        hits(RULE, key.replace("target)", "target, options)", 1).replace("+ target", "+ target + str(options)")) == []
    )


def test_a_compile_time_constant_of_the_kernel():
    constant = COMPILED.replace(
        "def run(q, scale):",
        "@cute.jit\ndef kernel(q: cute.Tensor, heads: cutlass.Int32, scale: cutlass.Constexpr):\n    pass\n\n"
        "def run(q, scale):",
    )
    assert hits(RULE, constant) == []
    assert "`scale`" in hits(RULE, constant.replace("(scale, q.dtype", "(q.dtype"))[0].message
    runtime = constant.replace("scale: cutlass.Constexpr", "scale: cutlass.Float32")
    assert hits(RULE, runtime.replace("(scale, q.dtype", "(q.dtype")) == []


def test_a_name_that_the_compiled_function_closes_over():
    closure = """
    _KERNELS = {}

    def build(T, dtype, scale):
        key = (T, dtype)
        if key not in _KERNELS:
            def main(q):
                return q * scale + T
            _KERNELS[key] = tilelang.compile(main)
        return _KERNELS[key]
    """
    assert ["`scale`" in hit.message for hit in hits(RULE, closure)] == [True]
    assert hits(RULE, closure.replace("(T, dtype)\n", "(T, dtype, scale)\n", 1)) == []
