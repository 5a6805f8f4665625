"""incomplete-cache-key: two different things must not share an entry."""

from __future__ import annotations

import pytest

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


ADDRESS = """
_CACHE = {}

def cast(t):
    key = (t.data_ptr(), t.shape)
    if key not in _CACHE:
        _CACHE[key] = t.float() + 1
    return _CACHE[key]
"""


def test_an_entry_that_a_helper_drops_with_its_owner():
    assert len(hits(RULE, ADDRESS)) == 1
    helper = "\ndef drop_with(cache, key, tensor):\n    weakref.finalize(tensor, cache.pop, key, None)\n"
    dropped = ADDRESS.replace("+ 1\n", "+ 1\n        drop_with(_CACHE, key, t)\n")
    assert hits(RULE, dropped + helper) == []
    assert len(hits(RULE, dropped + helper.replace("weakref.finalize", "print"))) == 1


def test_an_entry_that_another_function_forgets_by_its_address():
    assert hits(RULE, ADDRESS + "\ndef forget(t):\n    _CACHE.pop((t.data_ptr(), t.shape), None)\n") == []


def test_a_view_keeps_its_owner_alive():
    viewed = ADDRESS.replace("t.float() + 1", "view").replace(
        "        _CACHE",
        "        view = from_dlpack(t.reshape(-1))\n        view = view.mark_layout_dynamic()\n        _CACHE",
    )
    assert hits(RULE, viewed) == []


def test_a_buffer_that_every_call_writes_anew():
    buffer = """
    _CACHE = {}

    def scaled(t):
        key = t.data_ptr()
        result = _CACHE.get(key)
        if result is None:
            result = torch.empty_like(t)
            _CACHE[key] = result
        torch.mul(t, 2, out=result)
        return result
    """
    assert hits(RULE, buffer) == []
    assert len(hits(RULE, buffer.replace("        torch.mul(t, 2, out=result)\n", ""))) == 1


def test_a_key_that_names_its_owner_too():
    assert hits(RULE, ADDRESS.replace("t.shape)", "getattr(t, 'key', None))")) == []


def test_a_size_that_is_refused_unless_it_is_the_constant():
    fixed = COMPILED.replace(", heads)\n", ")\n", 1)
    assert len(hits(RULE, fixed)) == 1
    assert hits(RULE, fixed.replace("    key", "    if heads != HEADS:\n        raise ValueError\n    key", 1)) == []


def test_names_that_are_unpacked_from_the_key():
    unpacked = """
    _KERNELS = {}

    @cute.jit
    def kernel(q: cute.Tensor, T: cutlass.Constexpr, splits: cutlass.Constexpr):
        pass

    def build(key, q):
        if key not in _KERNELS:
            T, dtype = key
            splits = 4 if T == 1 else 2
            _KERNELS[key] = cute.compile(kernel, q, T, splits)
        return _KERNELS[key]
    """
    assert hits(RULE, unpacked) == []
    assert len(hits(RULE, unpacked.replace("T, dtype = key", "T = q.stride(0)"))) >= 1


def test_the_other_strides_are_asked_for_before():
    one = COMPILED.replace("heads)\n", "heads, rows)\n", 1)
    guarded = one.replace("    key", "    rows = 0\n    if q.stride(-1) == 1:\n        rows = q.stride(1)\n    key", 1)
    assert hits(RULE, guarded) == []
    assert len(hits(RULE, guarded.replace("q.stride(-1) == 1", "FAST"))) == 1


def test_a_helper_that_refuses_other_strides():
    one = COMPILED.replace("heads)\n", "heads, q.stride(0))\n", 1).replace("    key", "    dense(q)\n    key", 1)
    helper = "\ndef dense(t):\n    assert tuple(t.stride()[1:]) == (t.shape[-1], 1) and t.stride(0) > 0\n"
    assert hits(RULE, one + helper) == []
    assert len(hits(RULE, one + helper.replace("assert", "return"))) == 1


def test_dtypes_that_cannot_differ():
    free = COMPILED.replace("q.dtype, ", "")
    made = free.replace("    key", "    q = torch.zeros(q.shape, dtype=torch.bfloat16)\n    key", 1)
    assert hits(RULE, made) == []
    assert hits(RULE, free.replace("    key", "    q = q.detach().to(torch.bfloat16).contiguous()\n    key", 1)) == []
    assert hits(RULE, free.replace("heads, scale)\n", "heads, scale, options='--enable-tvm-ffi')\n", 1)) == []
    caller = "\ndef call(q):\n    if q.dtype != torch.bfloat16:\n        raise TypeError\n    return run(q, 1.0)\n"
    assert hits(RULE, free + caller) == []
    assert len(hits(RULE, free + caller.replace("q.dtype !=", "q.device !="))) == 1


def test_a_tensor_made_like_another_has_its_dtype():
    like = COMPILED.replace("q.dtype, ", "").replace("from_dlpack(q)", "from_dlpack(o)")
    like = like.replace("    key", "    o = torch.empty_like(q)\n    key", 1)
    assert "`q`" in hits(RULE, like)[0].message
    assert hits(RULE, like.replace("    key", "    assert q.dtype == torch.bfloat16\n    key", 1)) == []


def test_callers_that_make_the_tensor():
    free = COMPILED.replace("q.dtype, ", "")
    caller = "\ndef call(n):\n    q = torch.empty(n, dtype=torch.bfloat16)\n    return run(q, 1.0)\n"
    assert hits(RULE, free + caller) == []
    assert len(hits(RULE, free + caller.replace("torch.bfloat16", "n.dtype"))) == 1


def test_a_stride_that_the_kernel_is_handed_as_a_number():
    one = COMPILED.replace("heads)\n", "heads, rows)\n", 1).replace("    key", "    rows = q.stride(1)\n    key", 1)
    assert len(hits(RULE, one)) == 1
    handed = one.replace("cute.compile(kernel,", "cute.compile(Kernel(row_stride=rows),")
    assert hits(RULE, handed) == []


KEY_FUNCTION = """
import cudnn

def _graph_key(q, k, scale: float, *, page: int, causal: bool, tokens: int, verbose: bool):
    return (q.shape, k.shape, page, causal)

@cudnn.graph_cache(key_fn=_graph_key)
def _build(q, k, scale, *, page, causal, tokens, verbose):
    return cudnn.sdpa(q, k, attn_scale=scale, page=page, causal=causal, tokens=tokens, log=verbose)
"""


def test_a_key_function_that_ignores_what_the_builder_bakes_in():
    found = hits(RULE, KEY_FUNCTION)
    assert [(hit.function.name, "`scale`" in hit.message) for hit in found] == [("_graph_key", True)]
    assert hits(RULE, KEY_FUNCTION.replace("page, causal)\n\n", "page, causal, scale)\n\n")) == []


CONTENT_HASH = """
import hashlib, json
from dataclasses import dataclass

@dataclass(frozen=True)
class Options:
    outputs: list | None = None
    target: str = "auto"
    backend: str = "auto"
    verbose: bool = False

    def build(self, program):
        return make(program, self.outputs, self.target, self.backend, self.verbose)

    def __hash__(self):
        data = {"target": self.target, "backend": self.backend}
        return int.from_bytes(hashlib.sha256(json.dumps(data).encode()).digest(), "big")
"""


def test_a_hash_of_contents_that_leaves_out_a_field():
    assert [hit.message for hit in hits(RULE, CONTENT_HASH)] == ["The hash of the contents leaves out `outputs`."]
    assert hits(RULE, CONTENT_HASH.replace('data = {"target"', 'data = {"outputs": self.outputs, "target"')) == []


@pytest.mark.parametrize("field", ["outputs: list | None = field(compare=False)", "unused: int = 0"])
def test_fields_that_no_hash_needs_are_none(field: str):
    code = CONTENT_HASH.replace("outputs: list | None = None", field)
    if "unused" in field:
        code = code.replace("self.outputs, ", "")
    assert hits(RULE, code) == []


BUILT_BESIDE = """
import hashlib

class Cache:
    def _make_key(self, program, target=None):
        return hashlib.sha256(f"{program}{target}".encode()).hexdigest()

    def cached(self, program, target=None, flags=None, verbose=False):
        key = self._make_key(program=program, target=target)
        if key in self._kept:
            return self._kept[key]
        kernel = Kernel(program, target=target, flags=flags, verbose=verbose)
        self._kept[key] = kernel
        return kernel
"""


def test_the_builder_takes_what_the_key_is_made_without():
    found = [hit for hit in hits(RULE, BUILT_BESIDE) if "made without" in hit.message]
    assert [(hit.function.name, hit.message) for hit in found] == [("_make_key", "The key is made without `flags`.")]
    mended = BUILT_BESIDE.replace("target=None):", "target=None, flags=None):", 1)
    mended = mended.replace("{target}", "{target}{flags}").replace(
        "target=target)\n", "target=target, flags=flags)\n", 1
    )
    assert hits(RULE, mended) == []


FROM_SOURCE = """
import hashlib, inspect

def cache_key(fn, config):
    return hashlib.sha256((inspect.getsource(fn) + str(config)).encode()).hexdigest()
"""


def test_a_key_of_a_functions_source_without_its_closure():
    assert [hit.verdict for hit in hits(RULE, FROM_SOURCE)] == ["possible"]
    assert hits(RULE, FROM_SOURCE.replace("str(config)", "str(config) + str(inspect.getclosurevars(fn))")) == []


KEPT_BUFFER = """
import torch

_BUFFERS = [None] * 8

def scratch(x, size, dtype):
    at = x.device.index
    buffer = _BUFFERS[at]
    if buffer is None:
        _BUFFERS[at] = buffer = torch.empty(size, dtype=dtype, device=x.device)
    if size > buffer.numel():
        buffer.resize_(size)
    return buffer[:size]
"""


def test_a_kept_buffer_has_the_first_callers_dtype():
    found = hits(RULE, KEPT_BUFFER)
    assert [hit.module.quote(hit.node)[:31] for hit in found] == ["_BUFFERS[at] = buffer = torch.em"[:31]]
    assert "`dtype`" in found[0].message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("buffer is None:", "buffer is None or buffer.dtype != dtype:"),
        ("dtype=dtype", "dtype=torch.uint8"),
        ("at = x.device.index", "at = (x.device.index, dtype)"),
        ("if buffer is None:", "if size > 0:"),
    ],
)
def test_a_buffer_that_cannot_have_another_dtype(old: str, new: str):
    assert hits(RULE, KEPT_BUFFER.replace(old, new)) == []


def test_a_key_of_what_was_taken_from_an_argument_holds_it():
    taken = BUILT_BESIDE.replace("        key =", "        target = flags.target\n        key =")
    assert hits(RULE, taken) == []


PROGRAMS = """
import tilelang
_CACHE = {{}}

def call(func, *args, threads=128, **kwargs):
    tune = kwargs.pop("tune", {{}})
    key = ({key})
    if key not in _CACHE:
        program = func(*args, **kwargs, **tune, threads=threads)
        _CACHE[key] = tilelang.compile(program)
    return _CACHE[key]
"""


def test_the_key_holds_what_the_program_is_made_with():
    own = "args, tuple(sorted(kwargs.items()))"
    missing = [each.message for each in hits(RULE, PROGRAMS.format(key=own))]
    assert len(missing) == 2 and "`tune`" in missing[0] + missing[1] and "`threads`" in missing[0] + missing[1]
    assert len(hits(RULE, PROGRAMS.format(key=own + ", threads"))) == 1
    assert hits(RULE, PROGRAMS.format(key=own + ", threads, tuple(tune.items())")) == []


MASKS = """
_MASK_CACHE = {{}}

def mask_of(x, lengths, device):
    {before}
    key = {key}
    if key not in _MASK_CACHE:
        _MASK_CACHE[key] = build(list(lengths), device={device})
    return _MASK_CACHE[key]
"""


@pytest.mark.parametrize(
    ("key", "device", "before", "found"),
    [
        ("(lengths, x.dtype)", "x.device", "pass", 1),
        ("lengths", "device", "pass", 1),
        ("(lengths, x.device.index)", "x.device", "pass", 0),
        ("(lengths, str(device))", "device", "pass", 0),
        ("make_key(x, lengths)", "x.device", "pass", 0),
        ("lengths", "'cpu'", "pass", 0),
        ("lengths", "device", "assert device == torch.device('cuda')", 0),
    ],
)
def test_a_tensor_is_kept_by_its_device(key: str, device: str, before: str, found: int):
    assert len(hits(RULE, MASKS.format(key=key, device=device, before=before))) == found


def test_a_cache_of_masks_is_keyed_as_those_beside_it():
    code = """
    _INFO = {}
    _DENSE = {}
    _BLOCK_MASKS = {}

    def info(device, lengths):
        _INFO[device] = torch.tensor(lengths)
        return _INFO[device]

    def dense(device, lengths):
        _DENSE[device] = torch.tensor(lengths)
        return _DENSE[device]

    def block_mask(lengths, device):
        cache_key = KEY
        mask = BlockMask.from_lengths(list(lengths))
        _BLOCK_MASKS[cache_key] = mask
        return mask
    """
    assert [each.verdict for each in hits(RULE, code.replace("KEY", "tuple(lengths)"))] == ["possible"]
    assert hits(RULE, code.replace("KEY", "(device, tuple(lengths))")) == []
    assert hits(RULE, code.replace("KEY", "tuple(lengths)").replace("_INFO[device]", "_INFO[0]")) == []


HASH = """
    import inspect
    from hashlib import md5


    def kernel_hash(fn):
        return md5(WHAT.encode()).hexdigest()
"""


@pytest.mark.parametrize(("what", "count"), [("inspect.getsource(fn)", 1), ("fn.cache_key", 0)])
def test_a_digest_of_a_source_is_a_key_under_the_name_of_hash_too(what: str, count: int) -> None:
    assert len(hits(RULE, HASH.replace("WHAT", what))) == count
