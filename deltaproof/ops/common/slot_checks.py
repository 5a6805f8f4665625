"""Clauses P3 and M1 for every operator on a pool: who reads and who writes which slot, and whose memory is whose.

Shape legend: N rows or sequences, T tokens, S slots.
"""

from __future__ import annotations

import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.ops.common.checks import ALIGNMENT

INTS = (torch.int32, torch.int64)


def _extent(x: torch.Tensor) -> tuple[int, int]:
    """Return the first and the last address of a tensor's elements, the last excluded."""
    elements = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + elements * x.element_size()


def share(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Return whether the extents of two tensors overlap."""
    if x.numel() == 0 or y.numel() == 0 or torch.compiler.is_dynamo_compiling():
        return False
    (first, end), (other_first, other_end) = _extent(x), _extent(y)
    return x.device == y.device and first < other_end and other_first < end


def check_slot_memory(name: str, x: torch.Tensor, contiguous: str) -> None:
    """Check clause P5 for a tensor of slots [S, ...] that are each one block: how they lie, and no gradient.

    Args:
        name: the argument.
        x: the tensor.
        contiguous: what is expected of a slot, in words.

    Raises:
        ContractError: slots are not contiguous, overlap, are not aligned, or want a gradient.
    """
    if x.numel() == 0:
        return
    if not x[0].is_contiguous():
        raise ContractError(name, contiguous, f"strides {x.stride()}")
    step = x.stride(0)
    if x.shape[0] > 1 and abs(step) < x[0].numel():
        raise ContractError(name, "slots that do not overlap", f"a slot stride of {step} elements")
    if not torch.compiler.is_dynamo_compiling() and x.data_ptr() % ALIGNMENT:
        address = f"address % {ALIGNMENT} = {x.data_ptr() % ALIGNMENT}"
        raise ContractError(name, f"memory aligned to {ALIGNMENT} bytes", address)
    if x.shape[0] > 1 and step * x.element_size() % ALIGNMENT:
        bytes_ = f"{step * x.element_size()} bytes"
        raise ContractError(name, f"a slot stride that is a multiple of {ALIGNMENT} bytes", bytes_)
    if x.requires_grad:
        raise ContractError(name, "a tensor without gradient", "requires_grad=True")


def inside(index: torch.Tensor, slots: int) -> torch.Tensor:
    """Return which indices name a slot."""
    return (index >= 0) & (index < slots)


def check_writers(
    slots: int,
    read_index: torch.Tensor,
    has_initial_state: torch.Tensor | None,
    writes: torch.Tensor,
    kept: torch.Tensor,
    rows: torch.Tensor,
    name: str,
) -> None:
    """Check clause P3: one writer a slot, and no reader of a slot that another row writes (syncs on a GPU).

    Args:
        slots: S.
        read_index: slot each row starts from [N].
        has_initial_state: bool [N] or None; False reads nothing.
        writes: slots that are written.
        kept: which of ``writes`` are, bool of its shape.
        rows: the row of each of ``writes``.
        name: the argument that ``writes`` come from.

    Raises:
        ContractError: two writers of a slot, or a reader of what another row writes.
    """
    kept = kept & inside(writes, slots)
    targets, writers = writes[kept].long(), rows[kept]
    counts = torch.bincount(targets, minlength=slots) if slots else targets
    if bool((counts > 1).any()):
        slot = int((counts > 1).int().argmax())
        raise ContractError(
            name, "each slot written by one row at most", f"slot {slot} written {int(counts[slot])} times"
        )
    owner = torch.full((slots,), -1, dtype=torch.int64, device=targets.device)
    owner[targets] = writers
    reads = inside(read_index, slots)
    if has_initial_state is not None:
        reads = reads & has_initial_state
    readers = reads.nonzero().squeeze(1)
    wanted = read_index[readers].long()
    clash = (owner[wanted] >= 0) & (owner[wanted] != readers)
    if bool(clash.any()):
        at = int(clash.int().argmax())
        slot = int(wanted[at])
        got = f"slot {slot} read by row {int(readers[at])} and written by row {int(owner[slot])}"
        raise ContractError("read_index", "no row that reads a slot another row writes", got)
