"""Values of the convolution: outputs and windows are those of the definition

What it does
    Calls decode and prefill of the causal convolution over dtypes, widths, both layouts, with and without bias and
    silu, ragged rows, packed sequences with empty ones and tail rows, sequences shorter than the window; as many
    channels as the window has tokens, where its shape does not tell the layout. Each call is made twice, the second
    time with other values in the same memory.

What it shows
    A tap too early or too late, a window that is cut from the wrong inputs, weights read in the wrong order, a layout
    taken for the other, rows nobody wrote; products or sums in the dtype of the inputs; answers kept from an earlier
    call.

How it judges
    Outputs by the float64 oracle, row by row, within what sums of fp32 and the stored dtype may be off; windows must be
    the inputs themselves, to the bit; everything else in the pool's memory must be as it was. Tokens of nobody hold
    NaN.

What it cannot see
    Widths, sizes and options no case has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from deltaproof.verify.conv.case import ConvCase
from deltaproof.verify.conv.inputs import build, renew_
from deltaproof.verify.conv.judge import judge, run
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Context, Plan, Probe

ORDER = 200
DTYPES = ("float32", "bfloat16", "float16")


class ConvValues(Probe):
    """Clauses S0, S3, S4 and N2 for the convolution."""

    name = "conv_values"
    clause = "N2"
    clauses = ("N2", "P2", "S1", "S3")
    hazards = (
        "unwritten-output",
        "unthreaded-option",
        "low-precision-accumulate",
        "missing-base-offset",
        "unchecked-state-layout",
        "incomplete-cache-key",
    )
    forms = ("decode", "prefill")
    family: ClassVar[str] = "causal_conv"
    judges_values = True

    def cases(self, plan: Plan) -> Iterator[ConvCase]:  # type: ignore[override]
        base = ConvCase(plan.form)
        if plan.form == "decode":
            shapes = [base.but(T=1), base.but(T=5, num_tokens=(2, 0, 5))]
        else:
            shapes = [base.but(T=9), base.but(seqlens=(5, 0, 1, 19, 2), tail=3)]
        for shape in shapes:
            yield shape
            yield shape.but(layout="time_first", dtype="bfloat16", state_dtype="bfloat16")
        yield shapes[1].but(W=2, bias=False, silu=False, C=1)
        # one channel, so that nothing hides where a sum cancels
        yield shapes[1].but(C=1, dtype="bfloat16", parameter_dtype="bfloat16", bias=False, silu=False)
        yield shapes[1].but(C=3)
        yield shapes[1].but(C=3, layout="time_first")
        yield shapes[1].but(W=3, parameter_dtype="bfloat16", dtype="float16", C=300)
        if not plan.full:
            return
        for dtype in DTYPES:
            for state in DTYPES:
                for layout in ("channels_first", "time_first"):
                    yield shapes[1].but(dtype=dtype, state_dtype=state, layout=layout, C=40, W=5)
        for W in (2, 3, 4, 7, 8, 16):
            for C in (1, 7, 64, 130):
                yield shapes[1].but(W=W, C=C, silu=C != 7, layout="time_first" if W % 2 else "channels_first")
        yield base.but(B=0)
        if plan.form == "prefill":
            yield base.but(T=0)
            yield base.but(seqlens=(200, 63, 64, 65), C=128)
        else:
            yield base.but(T=16, B=40, slots=41, C=128)

    def run(self, case: ConvCase, context: Context) -> Iterator[Observation]:  # type: ignore[override]
        call = build(case, context.seed, context.device)
        for turn in (0, 1):
            # the same memory again: neither shapes nor addresses tell the second turn from the first
            if turn:
                renew_(call, case, context.seed, turn)
            yield from judge(context, case, call, run(context, case, call), "nan", "N2", None, turn)


PROBE = ConvValues()
