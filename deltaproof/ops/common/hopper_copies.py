"""How kernels in Gluon that walk chunks get them: tiles copied by TMA, which one thread asks for.

Each tile has barriers of its own, one a stage, whose phases its copies complete: between copies with one barrier the
compiler would make threads wait. A tile has 64 rows wherever a sequence ends: those behind are other sequences' or
nobody's, and rows outside the tensor are zeros. What a chunk needs comes in two parts, early (keys, queries, kept keys,
factors) and late (values, inverse, attention), each a triple of descriptors, shared memory and barriers; what a kernel
does not use is a stand-in. Shape legend: chunks of 64 tokens; HV value heads, K, V head sizes, V cut into blocks of BV.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from deltaproof.ops.common.hopper_tiles import copy_line
from deltaproof.ops.common.hopper_triangles import copy_matrix


@gluon.jit
def new_barrier(STAGES: gl.constexpr):
    """Return barriers for a tile of so many stages; a fence and a barrier of all threads must follow."""
    barrier = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(barrier.index(stage), count=1)
    return barrier


@gluon.jit
def wait_for(barrier, c):
    """Wait for a tile of chunk c, of which the first is 0."""
    STAGES: gl.constexpr = barrier.shape[0]
    mbarrier.wait(barrier.index(c % STAGES), (c // STAGES) & 1)


@gluon.jit
def expect_early(early, c, K: gl.constexpr, OUTPUTS: gl.constexpr, PER_CHANNEL: gl.constexpr):
    """Say how many bytes of each early tile of chunk c will come; a barrier of all threads must follow."""
    b_k, b_q, b_kept, b_factors = early[2]
    n = c % b_k.shape[0]
    mbarrier.expect(b_k.index(n), 128 * K)
    lines = early[1][3]
    mbarrier.expect(b_factors.index(n), 4 * lines.shape[1] * lines.shape[2])
    if PER_CHANNEL:
        mbarrier.expect(b_kept.index(n), 128 * K)
    if OUTPUTS:
        mbarrier.expect(b_q.index(n), 128 * K)


@gluon.jit
def copy_early(early, c, row, key, matrix, OUTPUTS: gl.constexpr, PER_CHANNEL: gl.constexpr):
    """Ask for a chunk's keys, queries (OUTPUTS), kept keys and factors; nobody may read their stages any more.

    Args:
        early: descriptors, shared memory and barriers of these.
        c: number of the chunk in this walk.
        row, key: row and column of its first token's key.
        matrix: its number among [chunks, HV].
    """
    k, q, kept, factors = early[0]
    s_k, s_q, s_kept, s_factors = early[1]
    b_k, b_q, b_kept, b_factors = early[2]
    n = c % b_k.shape[0]
    line = matrix * s_factors.shape[1]
    tma.async_copy_global_to_shared(k, [row, key], b_k.index(n), s_k.index(n))
    tma.async_copy_global_to_shared(factors, [line, 0], b_factors.index(n), s_factors.index(n))
    if PER_CHANNEL:
        tma.async_copy_global_to_shared(kept, [row, key], b_kept.index(n), s_kept.index(n))
    if OUTPUTS:
        tma.async_copy_global_to_shared(q, [row, key], b_q.index(n), s_q.index(n))


@gluon.jit
def expect_late(late, c, BV: gl.constexpr, OUTPUTS: gl.constexpr):
    """Say how many bytes of each late tile of chunk c will come; a barrier of all threads must follow."""
    b_v, b_i, b_a = late[2]
    mbarrier.expect(b_v.index(c % b_v.shape[0]), 128 * BV)
    mbarrier.expect(b_i.index(c % b_i.shape[0]), 128 * 64)
    if OUTPUTS:
        mbarrier.expect(b_a.index(c % b_a.shape[0]), 128 * 64)


@gluon.jit
def copy_late(late, c, row, value, matrix, OUTPUTS: gl.constexpr, WHOLE: gl.constexpr, WHOLE_A: gl.constexpr):
    """Ask for a chunk's values, inverse and attention (OUTPUTS); see ``copy_early`` and ``copy_matrix``."""
    v, inverse, attention = late[0]
    s_v, s_i, s_a = late[1]
    b_v, b_i, b_a = late[2]
    i = c % b_v.shape[0]
    tma.async_copy_global_to_shared(v, [row, value], b_v.index(i), s_v.index(i))
    i = c % b_i.shape[0]
    copy_matrix(inverse, matrix, b_i.index(i), s_i.index(i), 0, WHOLE)
    if OUTPUTS:
        i = c % b_a.shape[0]
        copy_matrix(attention, matrix, b_a.index(i), s_a.index(i), -32, WHOLE_A)


@gluon.jit
def copy_first(
    early, late, row, row_v, key, value, matrix,
    K: gl.constexpr, BV: gl.constexpr, OUTPUTS: gl.constexpr, PER_CHANNEL: gl.constexpr, WHOLE: gl.constexpr,
    WHOLE_A: gl.constexpr,
):  # fmt: skip
    """Ask for all of chunk 0, whose values begin at ``row_v``; see ``copy_early``."""
    expect_early(early, 0, K, OUTPUTS, PER_CHANNEL)
    expect_late(late, 0, BV, OUTPUTS)
    gl.thread_barrier()
    copy_early(early, 0, row, key, matrix, OUTPUTS, PER_CHANNEL)
    copy_late(late, 0, row_v, value, matrix, OUTPUTS, WHOLE, WHOLE_A)


@gluon.jit
def copy_strength(strength, line, count, HV: gl.constexpr, WARPS: gl.constexpr):
    """Ask for the strengths of a chunk, ``count`` of them and zeros behind: they are HV apart, which TMA cannot."""
    copy_line(strength, line, HV, count, 64, WARPS)
    async_copy.commit_group()


@gluon.jit
def zero_behind(tile, count, WIDTH: gl.constexpr, WARPS: gl.constexpr):
    """Zero the rows of a tile [64, WIDTH] from ``count`` on, whatever they hold."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [WARPS, 1], [1, 0])
    row = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))[:, None]
    tile.store(gl.where(row < count, tile.load(LAYOUT), gl.zeros([64, WIDTH], tile.dtype, LAYOUT)))
