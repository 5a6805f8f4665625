"""Clauses P: how decode and prefill use the slots of a pool."""

from __future__ import annotations

from deltaproof.contracts.clauses.model import POOL_FORMS, Clause

POOL_CLAUSES = (
    Clause(
        code="P1",
        name="padding-rows",
        title="An index outside the pool is padding: nothing is accessed, nothing is kept.",
        text="""
            - A row whose read index lies outside [0, slots) is padding: it accesses no slot, writes no slot, and
              its output is 0. That holds on both sides, -1 and `slots` alike, and also where `has_initial_state` is
              False for that row.
            - A valid read index with a write index outside the pool: the output is computed, the state is not kept.
            - A fresh sequence is said by `has_initial_state = False`, never by an index. The row then starts from a
              zero state and its read slot is not accessed, except that an in-place update (P4) writes it.
            - Slot 0 is a slot like any other here; only a StatePool may treat it specially.
            - decode, `num_tokens` [N]: row n has `num_tokens[n]` tokens. Tokens at or past that number give o = 0,
              are not processed and write nothing. With `num_tokens[n] = 0` and a `write_index` of shape [N], the
              row writes its initial state: the final state of an empty sequence is its initial state. A number
              outside [0, T] is refused with `validate="values"` and clamped to that range otherwise.
            - prefill, `checkpoint_index` [N, M]: an entry outside the pool means that this checkpoint is not kept.
        """,
        forms=POOL_FORMS,
        example="""
            A pool of 5 slots and `read_index = [3, -1, 5]`: row 0 reads slot 3; rows 1 and 2 are padding, give o =
            0, and no slot changes because of them.
        """,
    ),
    Clause(
        code="P2",
        name="named-slots-only",
        title="Only slots named by a valid write index change.",
        text="""
            Every byte of the pool outside the slots named by a valid write index is bit-identical after the call.
            That covers other slots, and the gaps between slots where the pool is a strided view. Entries of
            `write_index` [N, T] for tokens that are not processed name nothing.
        """,
        forms=POOL_FORMS,
    ),
    Clause(
        code="P3",
        name="no-aliased-writes",
        title="Rows may share a slot they read, never a slot they write.",
        text="""
            - Several rows may read one slot.
            - No two rows write the same slot, and a slot that one row writes is read by no other row of that call.
            - A slot named twice by `write_index` is refused, also within one row of [N, T], where one token's state
              would overwrite another's. The slots of `checkpoint_index` count as written.
            - Index values live on the device, so the refusal needs `validate="values"` or CPU tensors (E1).
        """,
        forms=POOL_FORMS,
        example="`read_index = [4, 4]` with `write_index = [1, 2]` is legal; `write_index = [1, 1]` is refused.",
    ),
    Clause(
        code="P4",
        name="write-index",
        title="Without a write index the update is in place; with one, the read slot stays as it was.",
        text="""
            - `write_index = None` means in place: the final state replaces the state in the slot that was read.
            - Otherwise the final state goes to the slots named by `write_index`, and the read slot keeps its state
              unless the same row names it as its write slot.
            - decode, `write_index` [N]: the state after the row's last token. [N, T]: entry (n, t) names the slot
              that keeps the state after token t; an entry outside the pool is not kept.
            - prefill, `checkpoint_every` and `checkpoint_index` [N, M]: entry j names the slot that keeps the state
              after (j + 1) * checkpoint_every tokens. It is written only if the sequence is at least that long.
              `checkpoint_every` must be a positive multiple of the chunk size.
        """,
        forms=POOL_FORMS,
        example="""
            `read_index = [2]`, `write_index = [[5, 6, 7]]`, T = 3: slots 5, 6 and 7 hold the states after tokens 0,
            1 and 2; slot 2 is unchanged, so a rejected draft token costs nothing to undo.
        """,
    ),
    Clause(
        code="P5",
        name="pool-strides",
        title="Slots and heads may have any stride; offsets are 64-bit; a pool is never copied.",
        text="""
            The slot and head strides of a pool are free, and offsets are computed in 64 bits. The inner matrix of
            one head is contiguous and 16-byte aligned; anything else is an error. A pool is never copied to make it
            fit, since the update would go to the copy.
        """,
        forms=POOL_FORMS,
        example="A view `buffer[:, 3]` of a paged buffer, with gaps between slots, is a legal pool.",
    ),
    Clause(
        code="P6",
        name="device-indices",
        title="Indices stay on the device, and a captured graph can be replayed with other indices.",
        text="""
            Indices live on the device. The call makes no host synchronisation and no allocation in the kernel path,
            and replaying a captured graph after the indices changed in place uses the new ones.
        """,
        forms=POOL_FORMS,
    ),
    Clause(
        code="P7",
        name="drafts",
        title="A speculative step keeps what was accepted, and of the rest no trace.",
        text="""
            - decode with `drafts`: memory of D tokens' inputs by slot, in two halves. `draft_half` [N] names the half
              that a row replays, 0 or 1; anything else replays nothing. A row's drafts are those of its write slot.
            - The result is that of decode on one longer row: first the `accepted[write slot]` tokens of that half, then
              the row's own. Outputs are those of its own tokens. The state that is kept is the one after the replayed
              tokens; where there are none it is the initial state, to the bit.
            - The inputs of the row's own tokens go to the other half, to half 0 where nothing is replayed, from its
              first place on. No other byte of the drafts changes.
            - A row that keeps no state, for its read or its write index lies outside the pool, replays nothing and
              keeps no drafts.
            - D is at least T. A count outside [0, D] is refused with `validate="values"` and clamped otherwise. With
              `num_tokens[n] = 0` a row only takes what was accepted.
        """,
        forms=("decode",),
        example="""
            Four tokens were drafted into half 0 and two of them accepted. The next step, with `draft_half = 0` and
            `accepted = 2`, stores the state after those two, computes its own tokens from there, and keeps their inputs
            in half 1. The other two are overwritten in the step after.
        """,
    ),
)
