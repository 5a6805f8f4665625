"""Reading and writing the slots of a pool in PyTorch, without a host sync (clauses P1 to P6).

S slots, N rows; states are [N, HV, K, V], the pool [S, HV, K, V] or [S, HV, V, K] in any slot and head stride.
"""

from __future__ import annotations

import torch

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.slot_checks import inside
from deltaproof.ops.common.torch_inputs import k_first


def read_slots(
    pool: torch.Tensor, read_index: torch.Tensor, has_initial_state: torch.Tensor | None, layout: StateLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows' states in fp32 [N, HV, K, V] and which rows are not padding [N].

    Padding and fresh rows start from zero; what their slot holds is selected away, never multiplied.
    """
    valid = inside(read_index, pool.shape[0])
    used = valid if has_initial_state is None else valid & has_initial_state
    if pool.shape[0] == 0:
        return k_first(pool.new_zeros((read_index.shape[0], *pool.shape[1:]), dtype=torch.float32), layout), valid
    state = pool.index_select(0, torch.where(used, read_index, 0).long()).float()
    return k_first(torch.where(used[:, None, None, None], state, 0.0), layout), valid


def write_slots(
    pool: torch.Tensor, write_index: torch.Tensor, keep: torch.Tensor, state: torch.Tensor, layout: StateLayout
) -> None:
    """Store state [N, HV, K, V] where ``keep`` [N] holds and the index names a slot; touch nothing else."""
    store_rows(pool, write_index, keep, k_first(state, layout).to(pool.dtype))


def store_rows(pool: torch.Tensor, write_index: torch.Tensor, keep: torch.Tensor, new: torch.Tensor) -> None:
    """Store rows [N, ...], as the pool [S, ...] holds them, where ``keep`` [N] holds and the index names a slot.

    The number of stores is fixed so that no host sync is needed: a row that keeps nothing repeats the store of the
    first row that does, or, if there is none, stores slot 0 back as it is.
    """
    if pool.shape[0] == 0 or write_index.shape[0] == 0:
        return
    kept = keep & inside(write_index, pool.shape[0])
    first = kept.int().argmax(0, keepdim=True)
    some = kept.any()
    target = torch.where(kept, write_index, torch.where(some, write_index.index_select(0, first), 0)).long()
    spare = torch.where(some, new.index_select(0, first), pool[:1])
    pool.index_copy_(0, target, torch.where(kept.view(-1, *(1,) * (new.dim() - 1)), new, spare))
