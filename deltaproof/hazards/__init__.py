"""The hazard catalogue: one entry for each way kernels break the contract, with its probe and its public bugs."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from deltaproof.contracts.errors import ContractError
from deltaproof.hazards.hazard import SEVERITIES, Hazard, Severity, Story
from deltaproof.hazards.memory import MEMORY_HAZARDS
from deltaproof.hazards.numbers import GRADIENT_HAZARDS, NUMERIC_HAZARDS, RANK_HAZARDS
from deltaproof.hazards.practice import BUILD_HAZARDS, DIFFUSION_HAZARDS, TEST_HAZARDS
from deltaproof.hazards.state import CONTENT_HAZARDS, STATE_HAZARDS

__all__ = ["FAMILIES", "HAZARDS", "SEVERITIES", "Hazard", "Severity", "Story", "hazard"]

FAMILIES: Mapping[str, tuple[Hazard, ...]] = MappingProxyType(
    {
        "Addresses": MEMORY_HAZARDS,
        "Undefined content": CONTENT_HAZARDS,
        "States and slots": STATE_HAZARDS,
        "Gradients and options": GRADIENT_HAZARDS,
        "Ranks": RANK_HAZARDS,
        "Arithmetic": NUMERIC_HAZARDS,
        "Tiles, caches and configurations": BUILD_HAZARDS,
        "Tests that cannot see": TEST_HAZARDS,
        "Block diffusion": DIFFUSION_HAZARDS,
    }
)
"""The hazards by the hundred of their code, in order."""

HAZARDS: Mapping[str, Hazard] = MappingProxyType(
    {entry.name: entry for family in FAMILIES.values() for entry in family}
)
"""Every hazard of the catalogue by its name."""

_BY_CODE = {entry.code: entry for entry in HAZARDS.values()}


def hazard(name_or_code: str) -> Hazard:
    """Return the hazard with this name (``"padding-slot-address"``) or code (``"HZ302"``); case does not matter.

    Raises:
        ContractError: there is no such hazard; the message names the nearest ones.
    """
    key = name_or_code.strip()
    found = HAZARDS.get(key.lower()) or _BY_CODE.get(key.upper())
    if found is None:
        near = get_close_matches(key.lower(), HAZARDS, n=3, cutoff=0.4)
        near = near or get_close_matches(key.upper(), _BY_CODE, n=3, cutoff=0.6)
        hint = f" (nearest: {', '.join(near)})" if near else ""
        raise ContractError("hazard", f"the name or code of a hazard in the catalogue{hint}", repr(name_or_code))
    return found
