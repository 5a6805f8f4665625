"""What one step of a batch reads and writes: static buffers on the device, filled with one asynchronous copy.

Shape legend: N rows of the step, padded; R the largest padded size.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.ops.common.checks import MAX_DECODE_TOKENS
from deltaproof.state.buffers import NOWHERE, StepBuffers
from deltaproof.state.lease import Lease, LeaseState
from deltaproof.state.pool import StatePool

STAGES = 4
"""Host buffers: so many steps may be planned ahead of the device before planning waits for a copy."""


@dataclass(frozen=True)
class _Row:
    """One row of a step."""

    lease: Lease
    tokens: int
    half: int = NOWHERE


class StepPlan:
    """Plans steps against a pool and holds what their kernels take.

    The buffers lie at the same addresses for every step, so a graph captured at one of the padded sizes can be
    replayed after the next step was planned. Planning a step checks every lease and refuses two writers of a slot and
    a reader of a slot that another row writes, on the host, before anything changes.

    A planned step counts as run: launch its kernels, in order, on the stream it was planned on.

    Args:
        pool: the pool.
        sizes: padded numbers of rows; a step takes the smallest that fits.

    Attributes:
        rows: rows of the present step that are not padding at its end.
        size: its padded number of rows N.
    """

    def __init__(self, pool: StatePool, *, sizes: Sequence[int]) -> None:
        good = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
        if not good or not sizes or len(set(sizes)) < len(sizes):
            raise ContractError("sizes", "different positive numbers of rows", list(sizes))
        self.pool, self.sizes = pool, tuple(sorted(sizes))
        self.rows, self.size = 0, self.sizes[0]
        largest, on_gpu = self.sizes[-1], pool.device.type == "cuda"
        self._device = StepBuffers(largest, pool.device, pinned=False)
        self._stages = [
            StepBuffers(largest, torch.device("cpu"), pinned=on_gpu) for _ in range(STAGES if on_gpu else 1)
        ]
        self._copied: list[Any] = [None] * len(self._stages)
        self._next = 0
        self._step: list[_Row | None] = []
        self._drafted: list[_Row | None] = []
        self._stale = torch.zeros((), dtype=torch.bool, device=pool.device)
        self._send()

    @property
    def read_index(self) -> torch.Tensor:
        """Slot each row starts from, int32 [N]; -1 is padding."""
        return self._device.read_index[: self.size]

    @property
    def write_index(self) -> torch.Tensor:
        """Slot that keeps each row's state, int32 [N]; -1 keeps none."""
        return self._device.write_index[: self.size]

    @property
    def num_tokens(self) -> torch.Tensor:
        """Tokens of each row, int32 [N]; 0 in padding."""
        return self._device.num_tokens[: self.size]

    @property
    def has_initial_state(self) -> torch.Tensor:
        """Whether each row starts from what its slot holds, bool [N]; False starts from zero."""
        return self._device.has_initial_state[: self.size]

    @property
    def draft_half(self) -> torch.Tensor:
        """Which half of its slot's drafts each row takes in, int32 [N]; -1 for none."""
        return self._device.draft_half[: self.size]

    @property
    def cu_seqlens(self) -> torch.Tensor:
        """Bounds of the rows' tokens side by side, int32 [N + 1]; padding rows are empty."""
        return self._device.cu_seqlens[: self.size + 1]

    def decode(self, leases: Sequence[Lease | None], num_tokens: Sequence[int] | None = None) -> dict[str, Any]:
        """Plan a step of 1 to 16 tokens a row in place.

        Args:
            leases: whose rows these are; None is a padding row.
            num_tokens: tokens of each row, 0 to 16; None means 1.

        Returns:
            what ``gated_delta_rule_decode`` takes of it: ``read_index``, ``write_index``, ``num_tokens`` and
            ``has_initial_state``.

        Raises:
            ContractError: a lease cannot be used, two rows write one slot, a row reads what another writes, or there
                are more rows than the largest size. Nothing has changed then.
        """
        counts = [1] * len(leases) if num_tokens is None else list(num_tokens)
        self._plan(leases, counts, MAX_DECODE_TOKENS)
        return self._arguments("num_tokens")

    def extend(self, leases: Sequence[Lease | None], lengths: Sequence[int]) -> dict[str, Any]:
        """Plan a prefill of whole sequences or of their next parts, packed side by side.

        Args:
            leases: whose sequences these are; None is a padding row, of length 0.
            lengths: tokens of each.

        Returns:
            what ``gated_delta_rule_prefill`` takes of it: ``read_index``, ``write_index``, ``has_initial_state`` and
            ``cu_seqlens``.

        Raises:
            ContractError: as for ``decode``.
        """
        self._plan(leases, list(lengths), None)
        return self._arguments("cu_seqlens")

    def speculate(self, leases: Sequence[Lease | None], num_tokens: Sequence[int]) -> dict[str, Any]:
        """Plan a step of tokens that may be rejected later.

        What was accepted of a lease's last drafts goes into its slot in this step; its new tokens go to the drafts.
        Call ``commit`` when it is known how many of them are accepted.

        Args:
            leases: whose rows these are; None is a padding row.
            num_tokens: tokens of each row, 0 to the D of the pool's draft fields.

        Returns:
            what ``gated_delta_rule_decode`` and ``causal_conv1d_update`` take of it, beside ``drafts``: as for
            ``decode``, and ``draft_half`` and ``accepted``.

        Raises:
            ContractError: as for ``decode``; or the pool has no draft field, or the last speculative step was not
                committed.
        """
        most = self.pool.draft_tokens
        if not most:
            raise ContractError("pool", "one with draft fields", self.pool.describe())
        self._check_committed()
        self._plan(leases, list(num_tokens), most, speculative=True)
        return self._arguments("num_tokens", "draft_half") | {"accepted": self.pool.accepted}

    def settle(self, leases: Sequence[Lease | None]) -> dict[str, Any]:
        """Plan a step that only takes in what was accepted: afterwards the slots hold the whole states.

        A lease must be settled before it is kept as a snapshot, forked, moved out, or used in ``decode`` or ``extend``.
        The kernels are those of ``speculate``, with no tokens.

        Args:
            leases: whose rows these are; None is a padding row.

        Returns:
            what ``speculate`` returns.

        Raises:
            ContractError: as for ``speculate``.
        """
        arguments = self.speculate(leases, [0] * len(leases))
        for row in self._drafted:
            if row is not None:
                row.lease._drafts(None)
        self._drafted = []
        return arguments

    def commit(self, accepted: Sequence[int] | torch.Tensor) -> None:
        """Say how many tokens of each row of the last speculative step are accepted; the rest leaves no trace.

        Nothing is computed: the next step of a row takes its accepted tokens in. With a tensor nothing waits for the
        device, and counts are cut to what was drafted; a lease's ``position`` is then unknown.

        Args:
            accepted: of each row, padding included: ints, or an int32 or int64 tensor on the pool's device.

        Raises:
            ContractError: there is no such step, a count is missing, or on the host more than was drafted. Nothing
                has changed then.
        """
        rows = self._drafted
        if not rows:
            raise ContractError("accepted", "a speculative step before it", "none that is not committed")
        known: Sequence[int | None]
        if isinstance(accepted, torch.Tensor):
            good = accepted.dtype in (torch.int32, torch.int64) and accepted.device.type == self.pool.device.type
            if not good or accepted.dim() != 1 or accepted.shape[0] < len(rows):
                got = f"{accepted.dtype} {list(accepted.shape)} on {accepted.device}"
                raise ContractError("accepted", f"int32 or int64 [{len(rows)}] on {self.pool.device}", got)
            counts, known = accepted[: len(rows)], [None] * len(rows)
        else:
            known = list(accepted)
            if len(known) != len(rows):
                raise ContractError("accepted", f"a number for each of {len(rows)} rows", f"{len(known)} numbers")
            for row, count in zip(rows, known, strict=True):
                most = 0 if row is None else row.tokens
                if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= most:
                    raise ContractError("accepted", f"ints, 0 to the {most} tokens that were drafted", repr(count))
            counts = torch.tensor(known, dtype=torch.int32).to(self.pool.device, non_blocking=True)
        buffers, table = self._device, self.pool.accepted
        assert table is not None
        limit = buffers.draft_count[: len(rows)]
        # rows of padding store to row 0, which nobody reads
        slots = buffers.draft_slot[: len(rows)].clamp(min=0).long()
        table.index_copy_(0, slots, torch.minimum(counts.to(torch.int32).clamp(min=0), limit))
        for row, count in zip(rows, known, strict=True):
            if row is not None and row.lease.state is not LeaseState.RELEASED:
                row.lease._accepted(count)
        self._drafted = []

    def guard(self) -> None:
        """Compare, on the device, the generation of every slot that the step in the buffers uses; for ``Debug``.

        Capture it with a step's kernels: a graph that is replayed after its leases were released, without a new plan,
        is noted. Does nothing without ``Debug.GENERATION``.
        """
        buffers, table = self._device, self.pool.generations
        if table is None:
            return
        for index, age in ((buffers.read_index, buffers.read_age), (buffers.write_index, buffers.write_age)):
            used = index[: self.size] >= 0
            now = table[index[: self.size].clamp(min=0).long()]
            self._stale |= (used & (now != age[: self.size])).any()

    def stale(self) -> bool:
        """Return whether ``guard`` has seen a slot whose generation had changed (syncs)."""
        return bool(self._stale)

    def _arguments(self, *more: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("read_index", "write_index", "has_initial_state", *more)}

    def _check_committed(self) -> None:
        waiting = [row.lease for row in self._drafted if row is not None]
        waiting = [lease for lease in waiting if lease.state is not LeaseState.RELEASED]
        if waiting:
            raise ContractError("leases", "a speculative step that was committed before the next", repr(waiting[0]))

    def _plan(
        self, leases: Sequence[Lease | None], counts: list[int], most: int | None, *, speculative: bool = False
    ) -> None:
        rows = self._checked(leases, counts, most, speculative)
        place = bisect.bisect_left(self.sizes, len(rows))
        if place == len(self.sizes):
            raise ContractError("leases", f"at most {self.sizes[-1]} rows, the largest size", f"{len(rows)} rows")
        self._check_slots(rows)
        self._step, self.rows, self.size = rows, len(rows), self.sizes[place]
        if speculative:
            self._drafted = rows
        self._send()
        for row in rows:
            if row is not None:
                spent = row.lease._stepped(0 if speculative else row.tokens)
                if speculative:
                    row.lease._drafts(1 - row.half if row.half >= 0 else 0)
                if spent is not None:
                    spent.release()

    def _checked(
        self, leases: Sequence[Lease | None], counts: list[int], most: int | None, speculative: bool
    ) -> list[_Row | None]:
        if len(counts) != len(leases):
            raise ContractError("num_tokens", f"a number for each of {len(leases)} rows", f"{len(counts)} numbers")
        limit = "0 or more" if most is None else f"0 to {most}"
        rows: list[_Row | None] = []
        for lease, count in zip(leases, counts, strict=True):
            if isinstance(count, bool) or not isinstance(count, int) or count < 0 or (most or count) < count:
                raise ContractError("num_tokens", f"ints, {limit}", repr(count))
            if lease is None:
                rows.append(None)
                continue
            if not isinstance(lease, Lease) or lease.pool is not self.pool:
                raise ContractError("leases", "leases of this plan's pool, or None", repr(lease))
            lease.check(settled=not speculative)
            if not lease._committed:
                raise ContractError("leases", "leases whose last drafts were committed", repr(lease))
            rows.append(_Row(lease, count, NOWHERE if lease._half is None else lease._half))
        return rows

    def _check_slots(self, rows: list[_Row | None]) -> None:
        """Check clause P3 on the host."""
        writers: dict[int, Lease] = {}
        for row in rows:
            if row is not None:
                if row.lease.slot in writers:
                    raise ContractError("leases", "one row a lease", f"{row.lease!r} twice")
                writers[row.lease.slot] = row.lease
        for row in rows:
            if row is not None and row.lease.has_initial_state:
                writer = writers.get(row.lease.read_slot)
                if writer is not None and writer is not row.lease:
                    raise ContractError("leases", "no row that reads a slot another row writes", f"{row.lease!r}")

    def _send(self) -> None:
        """Write the step into a host buffer and copy it to the device, asynchronously."""
        at, self._next = self._next, (self._next + 1) % len(self._stages)
        if self._copied[at] is not None:
            self._copied[at].synchronize()
        stage = self._stages[at]
        padded = [*self._step, *[None] * (self.sizes[-1] - len(self._step))]
        ends = [0]
        for row in padded:
            ends.append(ends[-1] + (0 if row is None else row.tokens))
        columns: dict[str, list[Any]] = {
            "read_index": [NOWHERE if row is None else row.lease.read_slot for row in padded],
            "write_index": [NOWHERE if row is None else row.lease.slot for row in padded],
            "num_tokens": [0 if row is None else row.tokens for row in padded],
            "has_initial_state": [row is not None and row.lease.has_initial_state for row in padded],
            "cu_seqlens": ends,
            "draft_half": [NOWHERE if row is None else row.half for row in padded],
            # the last speculative step's, until it is committed
            "draft_slot": [NOWHERE if row is None else row.lease.slot for row in self._drafted],
            "draft_count": [0 if row is None else row.tokens for row in self._drafted],
            "read_age": [0 if row is None else self.pool.generation(row.lease.read_slot) for row in padded],
            "write_age": [0 if row is None else self.pool.generation(row.lease.slot) for row in padded],
        }
        for name, values in columns.items():
            getattr(stage, name)[: len(values)] = torch.tensor(values, dtype=getattr(stage, name).dtype)
        self._device.block.copy_(stage.block, non_blocking=True)
        if self.pool.device.type == "cuda":
            if self._copied[at] is None:
                self._copied[at] = torch.cuda.Event()
            self._copied[at].record()
