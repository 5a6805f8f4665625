"""Slots for recurrent and convolution states: a pool, leases, snapshots and step plans."""

from deltaproof.contracts.conventions import ConvLayout, StateLayout
from deltaproof.state.fields import ConvDraftField, ConvField, DraftField, RecurrentField
from deltaproof.state.lease import Lease, LeaseState
from deltaproof.state.plan import StepPlan
from deltaproof.state.pool import Debug, PoolExhausted, StatePool
from deltaproof.state.report import PoolReport
from deltaproof.state.snapshot import Snapshot

__all__ = [
    "ConvDraftField",
    "ConvField",
    "ConvLayout",
    "Debug",
    "DraftField",
    "Lease",
    "LeaseState",
    "PoolExhausted",
    "PoolReport",
    "RecurrentField",
    "Snapshot",
    "StateLayout",
    "StatePool",
    "StepPlan",
]
