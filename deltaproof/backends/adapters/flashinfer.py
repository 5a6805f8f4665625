"""Adapter to an installed FlashInfer (package flashinfer-python): prefill and decode of the gated delta rule.

It translates names and views and nothing else. A dense batch [B, T, ...] is seen as a pack of B * T tokens; linear
gates and float32 are declared conventions, which its caller computes beforehand. The first call of each kind is
watched, and raises where other kernels ran than the mode names.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import torch

from deltaproof.backends.adapters import flashinfer_package
from deltaproof.backends.adapters.kernels_ran import Recording
from deltaproof.backends.adapters.watched import Result, Watched, kind
from deltaproof.contracts.conventions import Conventions, GateSpace, Padding, StateLayout
from deltaproof.ops.common.calls import DecodeCall, SequenceCall

FELL_BACK = "CP delta rule heuristic matched"
"""How its warning begins where it would split and does not."""


@dataclass(frozen=True)
class Mode:
    """One way in which its prefill treats long sequences.

    Attributes:
        name: name of the backend.
        text: the mode in words, a part of the backend's version.
        use_cp: its argument.
        lacks: what this mode lacks beside the package.
    """

    name: str
    text: str
    use_cp: bool | str
    lacks: Mapping[str, str] = field(default_factory=dict)


AUTO = Mode("flashinfer", "sequences split inside the card where it decides so", "auto")
SPLIT = Mode(
    "flashinfer:split",
    "every sequence split",
    True,
    {"chunk/batch_invariant": "the length of a part depends on all sequences of the call"},
)
UNSPLIT = Mode("flashinfer:unsplit", "no sequence split", False)


@dataclass(eq=False)
class FlashInferRecording(Recording):
    """Notes which of its functions that launch kernels were called, beside Triton's kernels."""

    functions: tuple[tuple[ModuleType, str], ...] = ()

    def _watch_more(self) -> None:
        for module, name in self.functions:
            self._patch(module, name, self._noting(f"{module.__name__}.{name}"))

    def _noting(self, name: str) -> Any:
        def note(result: Any, *args: Any) -> None:
            self.kernels[name] = None

        return note


class FlashInfer(Watched):
    """FlashInfer as it decides itself: where sequences and heads are few, sequences are split inside the card.

    ``batch_invariant=True`` is passed on as ``use_cp=False``, which splits none. Versions without that argument split
    none at all.

    Attributes:
        ran: form -> the functions seen in watched calls that launch its kernels.
    """

    mode: ClassVar[Mode] = AUTO
    operator = "gated_delta_rule"
    conventions = Conventions(
        layouts=(StateLayout.V_FIRST,), gate=GateSpace.LINEAR, padding=Padding.NEGATIVE, float32_gates=True
    )

    def __init__(self) -> None:
        super().__init__()
        self._package = flashinfer_package.load(self.mode.name, self.mode.use_cp != "auto")
        self.name = self.mode.name
        text = self.mode.text if self._package.splits else "it has no splitting"
        self.version = f"{self._package.version} ({text})"
        self.unsupported: Mapping[str, str] = {**self._package.lacks, **self.mode.lacks}
        if self._package.decode is None:
            # a form that is not there is an attribute that cannot be called
            self.decode = None  # type: ignore[assignment,method-assign]
        self._bounds: dict[tuple[int, int, torch.device], torch.Tensor] = {}

    def chunk(self, call: SequenceCall) -> Result:
        """Run its prefill."""
        if torch.compiler.is_compiling():
            return self._chunk(call)
        result: Result = self._watch("chunk", kind("chunk", call), lambda: self._strict(call))
        return result

    def decode(self, call: DecodeCall) -> torch.Tensor:
        """Run its decode of one token a row, in a pool."""
        if torch.compiler.is_compiling():
            return self._decode(call)
        result: torch.Tensor = self._watch("decode", kind("decode", call), lambda: self._decode(call))
        return result

    def _strict(self, call: SequenceCall) -> Result:
        """Make a call in which falling back to no splitting is an error."""
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=FELL_BACK)
            return self._chunk(call)

    def _chunk(self, call: SequenceCall) -> Result:
        B, T, _, HV, K, V = call.dims
        options, initial = call.options, call.initial_state
        o = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=call.device)
        final = None
        if call.output_final_state:
            dtype = torch.float32 if initial is None else initial.dtype
            final = call.allocate((call.sequences, HV, V, K), dtype=dtype, device=call.device)
        more = {"use_cp": False if options.batch_invariant else self.mode.use_cp} if self._package.splits else {}
        self._package.chunk(
            q=call.q.flatten(0, 1),
            k=call.k.flatten(0, 1),
            v=call.v.flatten(0, 1),
            g=call.g.flatten(0, 1),
            beta=call.beta.flatten(0, 1),
            scale=options.scale,
            initial_state=initial,
            output_final_state=call.output_final_state,
            cu_seqlens=self._starts(B, T, call.device) if call.cu_seqlens is None else call.cu_seqlens,
            use_qk_l2norm_in_kernel=options.normalize_qk,
            output=o.flatten(0, 1),
            output_state=final,
            **more,
        )
        return o, final

    def _starts(self, B: int, T: int, device: torch.device) -> torch.Tensor:
        """Return the bounds of a dense batch, which are made once."""
        key = (B, T, device)
        if key not in self._bounds:
            self._bounds[key] = torch.arange(B + 1, dtype=torch.int64, device=device) * T
        return self._bounds[key]

    def _decode(self, call: DecodeCall) -> torch.Tensor:
        out = call.out
        # it writes bfloat16, and makes a buffer of its own where the output is to be something else
        if out is None and call.v.dtype == torch.bfloat16:
            out = call.allocate(call.v.shape, dtype=call.v.dtype, device=call.device)
        assert self._package.decode is not None, "the form is not there without it"
        o, _ = self._package.decode(
            q=call.q,
            k=call.k,
            v=call.v,
            state=None,
            A_log=call.A_log,
            a=call.g,
            dt_bias=call.dt_bias,
            b=call.beta,
            scale=call.options.scale,
            output=out,
            use_qk_l2norm=call.options.normalize_qk,
            initial_state=call.pool,
            initial_state_indices=call.read_index,
            output_state_indices=call.write_index,
        )
        result: torch.Tensor = o
        return result

    def _mode(self) -> str:
        return self.mode.text

    def _recording(self) -> Recording:
        return FlashInferRecording(functions=self._package.kernels)

    def _complaints(self, what: str, recording: Recording) -> list[str]:
        found = recording.foreign("flashinfer", frozenset())
        ran = {name.rsplit(".", 1)[-1] for name in recording.kernels if name.startswith("flashinfer.gdn_")}
        split = {name for name in ran if name.startswith("cp_")}
        if not ran:
            found.append("no kernel of FlashInfer's that this adapter knows")
        if what == "chunk" and self.mode.use_cp is False and split:
            found.append(f"{', '.join(sorted(split))}, which splits sequences")
        if what == "chunk" and self.mode.use_cp is True and ran and not split:
            found.append(f"{', '.join(sorted(ran))}, which splits no sequence")
        return found


class FlashInferSplit(FlashInfer):
    """The same with every sequence split."""

    mode = SPLIT


class FlashInferUnsplit(FlashInfer):
    """The same with no sequence split."""

    mode = UNSPLIT
