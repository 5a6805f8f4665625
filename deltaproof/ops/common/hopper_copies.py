"""How kernels in Gluon that walk chunks get them: tiles copied by TMA, which one thread asks for, a chunk ahead.

Each tile has barriers of its own, one a stage, whose phases its copies complete: between copies with one barrier the
compiler would make threads wait. A tile has 64 rows wherever a sequence ends: those behind are other sequences' or
nobody's, and rows outside the tensor are zeros. Shape legend: chunks of 64 tokens; H query/key heads, HV value heads,
K, V head sizes, V cut into blocks of BV.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from deltaproof.ops.common.hopper_tiles import copy_line


@gluon.jit
def make_barriers(STAGES: gl.constexpr, OUTPUTS: gl.constexpr, PER_CHANNEL: gl.constexpr):
    """Return barriers for keys, values, factors, inverses, queries and kept keys, one a stage each.

    Those of queries without OUTPUTS, and those of kept keys without PER_CHANNEL, cannot be used.
    """
    LAYOUT: gl.constexpr = mbarrier.MBarrierLayout()
    barriers = (
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], LAYOUT),
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], LAYOUT),
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], LAYOUT),
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], LAYOUT),
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], LAYOUT),
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], LAYOUT),
    )
    for stage in gl.static_range(STAGES):
        for i in gl.static_range(4 + OUTPUTS):
            mbarrier.init(barriers[i].index(stage), count=1)
        if PER_CHANNEL:
            mbarrier.init(barriers[5].index(stage), count=1)
    fence_async_shared()
    gl.thread_barrier()
    return barriers


@gluon.jit
def _wait_for(barrier, c, STAGES: gl.constexpr):
    """Wait for a tile of chunk c, the (c // STAGES)-th of its stage."""
    mbarrier.wait(barrier.index(c % STAGES), (c // STAGES) & 1)


@gluon.jit
def wait_for_keys(barriers, c, STAGES: gl.constexpr):
    """Wait for the keys of chunk c, which are used first."""
    _wait_for(barriers[0], c, STAGES)


@gluon.jit
def wait_for_values(barriers, c, STAGES: gl.constexpr, PER_CHANNEL: gl.constexpr):
    """Wait for the values of chunk c, and for its kept keys."""
    _wait_for(barriers[1], c, STAGES)
    if PER_CHANNEL:
        _wait_for(barriers[5], c, STAGES)


@gluon.jit
def wait_for_rest(barriers, c, STAGES: gl.constexpr, OUTPUTS: gl.constexpr, PER_CHANNEL: gl.constexpr):
    """Wait for all of chunk c but its keys and its attention."""
    wait_for_values(barriers, c, STAGES, PER_CHANNEL)
    for i in gl.static_range(2, 4 + OUTPUTS):
        _wait_for(barriers[i], c, STAGES)


@gluon.jit
def expect_chunk(
    barriers, c,
    K: gl.constexpr, BV: gl.constexpr, STAGES: gl.constexpr, OUTPUTS: gl.constexpr, PER_CHANNEL: gl.constexpr,
):  # fmt: skip
    """Say how many bytes of each tile of chunk c will come, but for the attention."""
    stage = c % STAGES
    mbarrier.expect(barriers[0].index(stage), 128 * K)
    mbarrier.expect(barriers[1].index(stage), 128 * BV)
    mbarrier.expect(barriers[2].index(stage), 4 * K if PER_CHANNEL else 512)
    mbarrier.expect(barriers[3].index(stage), 128 * 64)
    if OUTPUTS:
        mbarrier.expect(barriers[4].index(stage), 128 * K)
    if PER_CHANNEL:
        mbarrier.expect(barriers[5].index(stage), 128 * K)


@gluon.jit
def copy_chunk(
    tiles, barriers, c, inputs, first, values, chunk, head, block,
    H: gl.constexpr, HV: gl.constexpr, K: gl.constexpr, V: gl.constexpr, BV: gl.constexpr, STAGES: gl.constexpr,
    OUTPUTS: gl.constexpr, PER_CHANNEL: gl.constexpr,
):  # fmt: skip
    """Ask for a chunk: 64 tokens, and what is prepared for it; nobody may read its stage any more.

    Args:
        tiles, barriers: keys, values, factors, inverses, queries and kept keys, a stage each.
        c: number of the chunk in this walk.
        inputs: descriptors in that order.
        first, values: rows of its first token in q and k, and in v.
        chunk: its number in what is prepared.
        OUTPUTS: whether queries are asked for.
    """
    s_k, s_v, s_factors, s_i, s_q, s_kept = tiles
    b_k, b_v, b_factors, b_i, b_q, b_kept = barriers
    k, v, factors, inverse, q, kept = inputs
    LINES: gl.constexpr = 1 if PER_CHANNEL else 2
    n = c % STAGES
    first = first.to(gl.int32)
    head = head.to(gl.int32)
    key = head // (HV // H) * K
    row = chunk.to(gl.int32) * HV + head
    place = [values.to(gl.int32), head * V + block.to(gl.int32) * BV]
    tma.async_copy_global_to_shared(k, [first, key], b_k.index(n), s_k.index(n))
    tma.async_copy_global_to_shared(v, place, b_v.index(n), s_v.index(n))
    tma.async_copy_global_to_shared(factors, [row * LINES, 0], b_factors.index(n), s_factors.index(n))
    tma.async_copy_global_to_shared(inverse, [row * 64, 0], b_i.index(n), s_i.index(n))
    if OUTPUTS:
        tma.async_copy_global_to_shared(q, [first, key], b_q.index(n), s_q.index(n))
    if PER_CHANNEL:
        tma.async_copy_global_to_shared(kept, [first, key], b_kept.index(n), s_kept.index(n))


@gluon.jit
def copy_attention(attention, tile, barrier, chunk, head, HV: gl.constexpr):
    """Ask for a chunk's attention, which is used last: it has one stage, and comes while its chunk is walked.

    With a second stage no two programs of heads of 128 would fit on a multiprocessor.
    """
    row = chunk.to(gl.int32) * HV + head.to(gl.int32)
    tma.async_copy_global_to_shared(attention, [row * 64, 0], barrier, tile)


@gluon.jit
def copy_strength(strength, line, first, count, head, HV: gl.constexpr, WARPS: gl.constexpr):
    """Ask for the strengths of a chunk, ``count`` of them and zeros behind: they are HV apart, which TMA cannot."""
    copy_line(strength + first * HV + head, line, HV, count, 64, WARPS)
    async_copy.commit_group()


@gluon.jit
def zero_behind(tile, count, WIDTH: gl.constexpr, WARPS: gl.constexpr):
    """Zero the rows of a tile [64, WIDTH] from ``count`` on, whatever they hold."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [WARPS, 1], [1, 0])
    row = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))[:, None]
    tile.store(gl.where(row < count, tile.load(LAYOUT), gl.zeros([64, WIDTH], tile.dtype, LAYOUT)))


@gluon.jit
def new_barrier(STAGES: gl.constexpr):
    """Return barriers for a tile of so many stages; a fence and a barrier of all threads must follow."""
    barrier = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(barrier.index(stage), count=1)
    return barrier


@gluon.jit
def wait_for(barrier, c, STAGES: gl.constexpr):
    """Wait for a tile of chunk c, the (c // STAGES)-th of its stage."""
    mbarrier.wait(barrier.index(c % STAGES), (c // STAGES) & 1)


@gluon.jit
def expect_early(barriers, c, K: gl.constexpr, PER_CHANNEL: gl.constexpr):
    b_k, b_q, b_kept, b_factors = barriers
    stage = c % 2
    mbarrier.expect(b_k.index(stage), 128 * K)
    mbarrier.expect(b_q.index(stage), 128 * K)
    mbarrier.expect(b_factors.index(stage), 4 * K if PER_CHANNEL else 512)
    if PER_CHANNEL:
        mbarrier.expect(b_kept.index(stage), 128 * K)


@gluon.jit
def copy_early(inputs, tiles, barriers, c, row, key, chunk_row, PER_CHANNEL: gl.constexpr):
    k, q, kept, factors = inputs
    s_k, s_q, s_kept, s_factors = tiles
    b_k, b_q, b_kept, b_factors = barriers
    stage = c % 2
    tma.async_copy_global_to_shared(k, [row, key], b_k.index(stage), s_k.index(stage))
    line = chunk_row * (1 if PER_CHANNEL else 2)
    tma.async_copy_global_to_shared(factors, [line, 0], b_factors.index(stage), s_factors.index(stage))
    if PER_CHANNEL:
        tma.async_copy_global_to_shared(kept, [row, key], b_kept.index(stage), s_kept.index(stage))
    tma.async_copy_global_to_shared(q, [row, key], b_q.index(stage), s_q.index(stage))


@gluon.jit
def expect_late(barriers, c, BV: gl.constexpr):
    b_v, b_i, b_a = barriers
    mbarrier.expect(b_v.index(0), 128 * BV)
    mbarrier.expect(b_i.index(0), 128 * 64)
    mbarrier.expect(b_a.index(c % 2), 128 * 64)


@gluon.jit
def copy_late(inputs, tiles, barriers, c, row, value, chunk_row):
    v, inverse, attention = inputs
    s_v, s_i, s_a = tiles
    b_v, b_i, b_a = barriers
    tma.async_copy_global_to_shared(v, [row, value], b_v.index(0), s_v.index(0))
    tma.async_copy_global_to_shared(inverse, [chunk_row * 64, 0], b_i.index(0), s_i.index(0))
    tma.async_copy_global_to_shared(attention, [chunk_row * 64, 0], b_a.index(c % 2), s_a.index(c % 2))


@gluon.jit
def wait_for_all(early, late, PER_CHANNEL: gl.constexpr):
    b_k, b_q, b_kept, b_factors = early
    b_v, b_i, b_a = late
    wait_for(b_k, 0, 2)
    wait_for(b_q, 0, 2)
    wait_for(b_factors, 0, 2)
    wait_for(b_v, 0, 1)
    wait_for(b_i, 0, 1)
    wait_for(b_a, 0, 2)
    if PER_CHANNEL:
        wait_for(b_kept, 0, 2)
