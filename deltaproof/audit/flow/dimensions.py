"""What names of dimensions, indices and index tables mean in the field, and how large they get in practice."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import names_in
from deltaproof.audit.model.names import snaked

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

BATCH = 12
"""Bits of a batch or of packed sequences: 4096."""
TIME = 17
"""Bits of one sequence: 131072 tokens."""
TOKENS = 22
"""Bits of all tokens of a batch: 4 million."""


@dataclass(frozen=True)
class Size:
    """A product of dimensions.

    Attributes:
        batch: whether the batch, or the number of sequences, is a factor.
        time: whether the length of a sequence is a factor.
        rest: bits of the other factors, less those of the divisors.
    """

    batch: bool = False
    time: bool = False
    rest: float = 0

    @property
    def tokens(self) -> bool:
        """Return whether it counts tokens of a whole batch."""
        return self.batch and self.time

    @property
    def bits(self) -> float:
        """Return how many bits it takes in practice."""
        return self.rest + (TOKENS if self.tokens else BATCH if self.batch else TIME if self.time else 0)

    def times(self, other: Size) -> Size:
        """Return the product."""
        return Size(self.batch or other.batch, self.time or other.time, self.rest + other.rest)

    def over(self, other: Size) -> Size:
        """Return the quotient."""
        batch = self.batch and not other.batch
        time = self.time and not other.time
        return Size(batch, time, self.rest - other.rest)


_NAMES: tuple[tuple[re.Pattern[str], Size], ...] = tuple(
    (re.compile(pattern), size)
    for pattern, size in (
        (r"(T|TQ|TK|L|seq_?len\w*|SEQ_?LEN\w*|max_?seq_?len\w*|seqlen\w*|N_CTX|T_max|max_T)$", Size(time=True)),
        (r"(NT|NTS?|TC|num_chunks|n_chunks|nchunks|NUM_CHUNKS)$", Size(time=True, rest=-6)),
        (r"(B|N|bs|bsz|batch|batch_size|BATCH|BATCH_SIZE|Z|num_seqs|n_seqs|num_reqs|num_sequences)$", Size(True)),
        (r"(BH|NH|BHV|NHV|batch_heads)$", Size(batch=True, rest=6)),
        (r"(total_tokens|all|total_len|n_rows|num_rows|total_rows|total_q_len|total_seq_len)$", Size(True, True)),
        (r"(num_tokens|n_tokens|M|num_token|tokens|NUM_TOKENS|EM|M_total)$", Size(rest=17)),
        (r"(topk|top_k|TOP_K|TOPK|K_TOP|num_experts_per_tok)$", Size(rest=3)),
        (r"(E|num_experts|NUM_EXPERTS|n_experts)$", Size(rest=8)),
        (r"(H|HQ|HV|HK|HKV|H_kv|H_q|num_\w*heads\w*|n_?heads?\w*|NUM_\w*HEADS?\w*|nheads\w*)$", Size(rest=6)),
        (
            r"(K|V|DK|DV|Dh|DH|head_?dim\w*|HEAD_?DIM\w*|head_size\w*|dim_?[kv]|D_?HEAD|headdim|hdim|d?state|d_state|K_DIM|V_DIM)$",
            Size(rest=7),
        ),
        (r"(D|dim|DIM)$", Size(rest=10)),
        (r"R$", Size(rest=6)),
        (r"(hidden\w*|HIDDEN\w*|D_?MODEL|d_model|n_cols|N_COLS|num_cols|n_elements_per_row)$", Size(rest=13)),
        (r"(intermediate\w*|INTERMEDIATE\w*)$", Size(rest=14)),
        (r"(vocab\w*|VOCAB\w*)$", Size(rest=17)),
        (
            r"(BT|BK|BV|BS|BL|BN|BM|BI|BJ|BTL|BTS|S|C|BLOCK\w*|block_\w+|BLK\w*|TILE\w*|tile_\w+|CHUNK\w*|chunk\w*)$",
            Size(rest=6),
        ),
        (r"(BC|G|W|BW|GROUP\w*)$", Size(rest=3)),
        (r"(page_size|PAGE_SIZE)$", Size(rest=5)),
        (r"\w*stride\w*(indices|_ind|_idx|lens|mask)\w*$", Size(rest=4)),
        (r"(NK|NV|NC|ND|NG)$", Size(rest=2)),
        (r"(n_?groups|num_groups|num_splits|n_splits|NUM_SPLITS|nsplits)$", Size(rest=3)),
        (r"(num_?sms?|NUM_SMS?|sm_count|num_cores)$", Size(rest=8)),
        (r"\w*stride_?\w*(_|q|k|v|o|x|h|b)(d|dim|k|v|col|n)$", Size(rest=0)),
        (r"\w*stride\w*_?(h|head|heads)$", Size(rest=8)),
        (r"\w*stride\w*conv\w*$", Size(rest=14)),
        (r"\w*stride\w*(slot|state|pool|cache|page|block|blk)\w*$", Size(rest=20)),
        (r"\w*stride\w*_(b|z)$", Size(rest=18)),
        (r"\w*stride\w*_(t|l|s|m|row|tok\w*|seq\w*)$", Size(rest=13)),
    )
)

_INDICES: tuple[tuple[re.Pattern[str], Size], ...] = tuple(
    (re.compile(pattern), size)
    for pattern, size in (
        (r"(i_bh|i_nh|i_bg|pid_bh|off_bh|off_hz|bh|bh_id|pid_nh|i_bhv)$", Size(batch=True, rest=6)),
        (
            r"(i_b|i_n|i_seq|pid_b|pid_batch|batch_id\w*|bid|b_idx|batch|cur_batch|off_z|idx_seq|seq_idx|i_z)$",
            Size(True),
        ),
        (r"(i_t|i_c|i_s|i_i|pid_t|pid_c|chunk_id\w*|i_chunk|start_m|pid_s)$", Size(time=True, rest=-6)),
        (r"(row\w*|pid_row|i_row)$", Size(batch=True, time=True)),
        (r"(tok\w*|token\w*|pid_tok\w*)$", Size(rest=17)),
        (r"(i_h|i_hq|i_hv|pid_h|head\w*|cur_head|off_h)$", Size(rest=6)),
        (r"(i_k|i_v|i_d|i_kv|pid_d|pid_n|pid_k|pid_v)$", Size(rest=4)),
    )
)

_TABLES: tuple[tuple[re.Pattern[str], Size], ...] = tuple(
    (re.compile(pattern), size)
    for pattern, size in (
        (r"(chunk_offsets?|split_offsets?|state_offsets?|block_offsets?)", Size(True, True, rest=-6)),
        (r"(chunk_ind\w*|block_ind\w*|tile_ind\w*)", Size(True, True, rest=-6)),
        (r"(token_ind\w*)", Size(True, True)),
        (
            r"(cu_?seq\w*|offsets?$|seq_?start\w*|qo_indptr|kv_indptr|indptr\w*|query_start_loc\w*|\w*start_loc\w*)",
            Size(True, True),
        ),
        (
            r"(\w*slot\w*|\w*state_(batch_)?ind\w*|\w*cache_ind\w*|\w*state_idx\w*|\w*h0_ind\w*|ssm_ind\w*)",
            Size(rest=13),
        ),
        (r"(\w*block_?tables?\w*|\w*page_?tables?\w*|\w*page_ind\w*|\w*block_map\w*)", Size(rest=18)),
        (r"(kv_ind\w*|\w*cache_loc\w*|\w*kv_loc\w*|\w*req_to_token\w*)", Size(rest=22)),
        (r"(\w*seq_?lens?\w*|\w*lengths?\w*)", Size(time=True)),
        (r"(\w*expert_ids?\w*)", Size(rest=8)),
        (r"(\w*([Dd]est|dst)_?([Ll]oc|[Ii]nd|idx)\w*|\w*(gather|scatter)_?(ind|idx)\w*|mem_index\w*)", Size(rest=20)),
        (r"(\w*sorted_token\w*|\w*src2dst\w*|\w*reorder\w*)", Size(rest=20)),
    )
)


def of_name(name: str, beside: Collection[str] = ()) -> Size | None:
    """Return how large a dimension or stride of that name gets; None for an unknown name.

    Args:
        name: the name.
        beside: the names it is used with: M beside N makes them a matrix's sides, H beside D makes D a head's size.
    """
    if name == "N" and "M" in beside:
        return Size(rest=13)
    if name in ("D", "dim") and any(each in beside for each in ("H", "HQ", "HV", "nheads", "num_heads", "n_heads")):
        return Size(rest=7)
    for pattern, size in _NAMES:
        if pattern.match(name):
            return size
    return None


STEP = re.compile(r"update|decode|draft|verify|(^|_)step(_|$)")
"""Kernels that take one or a few tokens of each sequence."""
_NEW_TOKENS = re.compile(r"(T|TQ|L|seq_?len|max_q_?len)$")


def few_tokens(kernel: str, name: str) -> bool:
    """Return whether a length of that name counts the few new tokens that a kernel of that name takes."""
    return STEP.search(kernel) is not None and (
        _NEW_TOKENS.match(name) is not None or ("draft" in kernel and re.match(r"max_seq_?len\w*$", name) is not None)
    )


def of_dimension(name: str, shape: Collection[str]) -> Size | None:
    """Return how long the axis of a tensor gets that a shape calls so: S is a length there, and no tile."""
    if name in ("S", "L") and any(re.match(r"(B|Z|batch\w*|bsz?)$", each) for each in shape):
        return Size(time=True)
    if name == "C" and len(shape) > 1 and list(shape)[-1] == "C" and not any("chunk" in each for each in shape):
        return Size(rest=12)  # channels
    if name == "M" and len(shape) > 1 and list(shape)[-1] == "M":
        return Size(rest=7)  # a row's length
    if name == "BT" and next(iter(shape)) == "BT":
        return Size(True, True)  # a batch's tokens, flattened
    return of_name(name, shape)


_TIME_AXIS = re.compile(r"\w*_(t|l|m|q?s|seq\w*|tok\w*)$|\w*(seqlen|seq_len|token)\w*$|\w*_[qkvo]m$")
_CHUNK_AXIS = re.compile(r"\w*_(n?chunks?|c)$")
_TILE_AXIS = re.compile(r"\w*_csize\w*$")
_HEAD_AXIS = re.compile(r"\w*h$|\w*head\w*$")
_SPLIT_AXIS = re.compile(r"\w*([oe]s|split\w*)$")
_OUTER_AXIS = re.compile(r"\w*(_b|_z|_bs|batch|group|chunks?)$")


def of_axis(name: str, last: bool = False) -> Size:
    """Return how long the axis is whose stride has that name; the last axis is no chunk count."""
    if _CHUNK_AXIS.match(name) and not last:
        return Size(time=True, rest=-6)
    if _TILE_AXIS.match(name):
        return Size(rest=6)
    if _TIME_AXIS.match(name):
        return Size(time=True)
    if _SPLIT_AXIS.match(name):
        return Size(rest=4)
    return Size(rest=6 if _HEAD_AXIS.match(name) else 7)


def is_last_axis(name: str) -> bool:
    """Return whether a stride of that name may be the last axis's, which is often left out."""
    return not any(pattern.match(name) for pattern in (_TIME_AXIS, _HEAD_AXIS, _OUTER_AXIS))


def of_index(name: str) -> Size | None:
    """Return how large an index of that name gets."""
    for pattern, size in _INDICES:
        if pattern.match(name):
            return size
    return None


def of_table(function: Function, expr: ast.expr) -> Size | None:
    """Return how large what is loaded from a table of indices gets, or how long a table is that ``len`` is asked for.

    A table of pairs holds the sequence first and the place in it second.
    """
    names = {snaked(name) for name in names_in(expr)}
    for pattern, size in _TABLES:
        named = [name for name in names if pattern.match(name)]
        if not named:
            continue
        pairs = re.match(r"(chunk|block|tile|token)_ind", named[0]) is not None
        if not pairs or expr not in function.parents or isinstance(expr, ast.Name):
            return size
        second = isinstance(expr, ast.BinOp) and isinstance(expr.right, ast.Constant) and expr.right.value == 1
        return Size(time=True, rest=size.rest) if second else Size(batch=True)
    return None
