"""Mutants of speculative steps: which drafts are taken in, which state is kept, where new drafts go."""

from __future__ import annotations

import torch

from deltaproof.ops.common.calls import DecodeCall
from deltaproof.verify.mutants.halves import ReadHalf, WrappedDrafts
from deltaproof.verify.mutants.model import ModelBackend
from deltaproof.verify.mutants.mutant import Mutant


class RejectedTakenIn(ModelBackend):
    """All tokens of the last drafts are taken in, whatever was accepted."""

    def taken(self, call: DecodeCall) -> DecodeCall:
        assert call.drafts is not None and call.accepted is not None
        changed: DecodeCall = call.with_(accepted=torch.full_like(call.accepted, call.drafts.k.shape[2]))
        return changed


class ZeroTakenForOne(ModelBackend):
    """The last accepted token is found by counting down from one that is not there: none accepted gives the first."""

    def taken(self, call: DecodeCall) -> DecodeCall:
        assert call.accepted is not None
        changed: DecodeCall = call.with_(accepted=call.accepted.clamp(min=1))
        return changed


class OtherHalf(ModelBackend):
    """Drafts are taken in from the half that the step before last wrote."""

    def taken(self, call: DecodeCall) -> DecodeCall:
        assert call.draft_half is not None
        half = call.draft_half
        changed: DecodeCall = call.with_(draft_half=torch.where((half == 0) | (half == 1), 1 - half, half))
        return changed


class OneHalf(ReadHalf, ModelBackend):
    """New drafts go where the old ones are still read."""


class DraftsOfReadSlot(ModelBackend):
    """A row that starts from another slot takes in that slot's count of accepted drafts."""

    def taken(self, call: DecodeCall) -> DecodeCall:
        assert call.accepted is not None
        accepted = call.accepted.clone()
        slots = call.pool.shape[0]
        for read, write in zip(call.read_index.tolist(), call.writes.tolist(), strict=True):
            if 0 <= read < slots and 0 <= write < slots:
                accepted[write] = call.accepted[read]
        changed: DecodeCall = call.with_(accepted=accepted)
        return changed


class StateAfterDrafts(ModelBackend):
    """The state is kept after the row's own tokens too, as an ordinary step keeps it: nothing can be rejected."""

    def state_after(self, call: DecodeCall, plain: DecodeCall, counts: list[int]) -> DecodeCall:
        changed: DecodeCall = plain.with_(write_index=call.writes)
        return changed


class PaddingDrafts(WrappedDrafts, ModelBackend):
    """The drafts of a padding row go to the last slot, where -1 points."""


STALE = "vllm #39273: after speculation a step read a state that was not that of the accepted tokens"
RACE = "none known: half a slot's drafts are read while the other half is written"
MUTANTS = tuple(
    Mutant(name, hazard, "decode", "drafts", story, make, why="no other probe makes speculative steps of every kind")
    for name, hazard, story, make in (
        ("rejected-taken-in", "appended-cache", STALE, RejectedTakenIn),
        ("zero-taken-for-one", "appended-cache", STALE, ZeroTakenForOne),
        ("state-after-drafts", "appended-cache", STALE, StateAfterDrafts),
        ("other-half", "aliased-slot", RACE, OtherHalf),
        ("one-half", "aliased-slot", RACE, OneHalf),
        ("drafts-of-read-slot", "aliased-slot", "none known: a count of another slot is taken", DraftsOfReadSlot),
        ("padding-drafts", "padding-slot-address", "none known: drafts of -1 go to the last slot", PaddingDrafts),
    )
)
