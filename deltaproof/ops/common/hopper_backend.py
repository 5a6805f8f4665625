"""The ``hopper`` backend of a delta rule: chunk and prefill on compute capability 9.0; an operator adds its kernels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton

from deltaproof.contracts.conventions import Conventions
from deltaproof.ops.common import gluon_interpreter, triton_interpreter
from deltaproof.ops.common.calls import PrefillCall, SequenceCall
from deltaproof.ops.common.hopper_decode import is_hopper
from deltaproof.ops.common.triton_language import GLUON, INTERPRETED
from deltaproof.ops.common.triton_ops import TritonOperators

if not GLUON:
    raise ImportError(f"the kernels for Hopper need Triton 3.6, and this is {triton.__version__}")
if INTERPRETED:
    triton_interpreter.hurry()
    gluon_interpreter.switch_on()


def _cannot_run() -> str | None:
    if INTERPRETED:
        return triton_interpreter.why_not()
    if torch.cuda.is_available() and is_hopper(torch.device("cuda", torch.cuda.current_device())):
        return None
    return "its kernels need a GPU of compute capability 9.0"


class HopperDeltaRule:
    """Kernels in Gluon for chunks of 64 tokens; where they are interpreted (TRITON_INTERPRET=1), also on the CPU.

    A call that it does not take goes to the next backend.
    """

    name = "hopper"
    version = triton.__version__
    operator: str
    operators: TritonOperators
    conventions = Conventions()
    unsupported: Mapping[str, str] = {
        **({} if INTERPRETED else {"device:cpu": "the kernels need a GPU"}),
        "dtype:float32": "its products are of two bytes an operand",
        "mixed_dtypes": "its products are of one dtype",
        "head_size:other": "its kernels are for heads of 64 and 128",
        "chunk_size:16": "its kernels are for chunks of 64",
        "chunk_size:32": "its kernels are for chunks of 64",
    }
    only_when_asked = "its kernels are interpreted here, which is slow" if INTERPRETED else None
    cannot_run = _cannot_run()

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the chunked form."""
        return self.operators.chunk(call)

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        """Run whole sequences against a pool."""
        return self.operators.prefill(call)
