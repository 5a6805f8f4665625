"""Arguments that every public operator takes."""

from __future__ import annotations

from typing import Literal

import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.ops.common.allocation import INITS, Allocator

Validate = Literal["shapes", "values"]


def looks_at_values(validate: str | None, x: torch.Tensor) -> bool:
    """Return whether tensors' contents are checked: always on the CPU, elsewhere when asked for.

    Raises:
        ContractError: ``validate`` is something else.
    """
    if validate not in (None, "shapes", "values"):
        raise ContractError("validate", "None, 'shapes' or 'values'", repr(validate))
    return validate == "values" or (validate is None and isinstance(x, torch.Tensor) and x.device.type == "cpu")


def allocator(out_init: str | None) -> Allocator:
    """Return the allocator whose "empty" buffers hold what ``out_init`` says.

    Raises:
        ContractError: ``out_init`` is something else.
    """
    if out_init is not None and out_init not in INITS:
        raise ContractError("out_init", f"None or one of {', '.join(INITS)}", repr(out_init))
    return Allocator(out_init)
