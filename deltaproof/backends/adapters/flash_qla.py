"""Adapter to an installed FlashQLA (package flash-qla): its chunked form of the gated delta rule, with gradients.

It translates names and nothing else: what FlashQLA returns is returned as it came, in its dtypes. The first call of
each kind is watched, and raises where FlashQLA's own kernels did not run, or others did.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from deltaproof.backends.adapters.fla_modes import installed
from deltaproof.backends.adapters.kernels_ran import Recording
from deltaproof.backends.adapters.tilelang_ran import TileLangRecording, launchers
from deltaproof.backends.adapters.watched import Result, Watched, kind
from deltaproof.contracts.conventions import Conventions, Padding, StateLayout
from deltaproof.contracts.errors import ContractError
from deltaproof.ops.common.calls import SequenceCall

PACKAGE = "flash-qla"
TAKEN = frozenset(
    {"q", "k", "v", "g", "beta", "scale", "initial_state", "output_final_state", "use_qk_l2norm_in_kernel",
     "cu_seqlens", "state_v_first", "auto_cp", "force_intra_cp"}
)  # fmt: skip
"""Arguments that its function must name."""
FORWARD = "tilelang_fused_chunk_gdr_fwd"
BACKWARD = "tilelang_fused_chunk_gdr_bwd"
STITCH = "tilelang_correct_h0"
"""Of its kernels: what computes outputs, what computes gradients, and what joins the parts of a split sequence."""

SIZE = "its kernels' callers assert K == V == 128"
NOT_COMPUTED = "chunk_gated_delta_rule has no argument for it: its caller computes it beforehand"
LACKS: Mapping[str, str] = {
    "device:cpu": "its TileLang kernels need a GPU",
    "dtype:float32": "chunk_gated_delta_rule asserts bfloat16 or float16",
    "mixed_dtypes": "chunk_gated_delta_rule asserts that q, k and v have one dtype",
    "head_size:64": SIZE,
    "head_size:other": SIZE,
    "chunk_size:16": "its chunks have the one size that its kernels are written for",
    "chunk_size:32": "its chunks have the one size that its kernels are written for",
    "chunk_states": "chunk_gated_delta_rule returns no states between chunks",
    "gate_in_kernel": NOT_COMPUTED,
    "beta_sigmoid": NOT_COMPUTED,
    "sync_free_varlen": "it reads cu_seqlens on the host to count chunks and to decide on splitting",
}
"""What it asserts, has no argument for, or reads on the host; what it takes is run, and may fail."""


@dataclass(frozen=True)
class Mode:
    """One way in which it treats long sequences.

    Attributes:
        name: name of the backend.
        text: the mode in words, a part of the backend's version.
        auto_cp, force_intra_cp: its arguments.
        lacks: what this mode lacks beside LACKS.
    """

    name: str
    text: str
    auto_cp: bool
    force_intra_cp: bool
    lacks: Mapping[str, str]


EMPTY = {"empty": "its decision whether to split raises ValueError: invalid sequence lengths"}
AUTO = Mode("flash_qla", "sequences split inside the card where it decides so", True, False, EMPTY)
SPLIT = Mode(
    "flash_qla:split",
    "every sequence split that is longer than a segment",
    True,
    True,
    {**EMPTY, "batch_invariant": "the length of a segment depends on all sequences of the call"},
)
UNSPLIT = Mode("flash_qla:unsplit", "no sequence split", False, False, {})


@dataclass(frozen=True)
class Package:
    """The installed package.

    Attributes:
        version: of the distribution, with TileLang's.
        chunk: its function.
    """

    version: str
    chunk: Callable[..., Any]


def load(mode: Mode) -> Package:
    """Import FlashQLA's function.

    Raises:
        ContractError: it or what it needs is not installed, this machine has no GPU that it supports, or it is another
            version whose arguments differ.
    """
    if importlib.util.find_spec("flash_qla") is None:
        expected = f"package {PACKAGE} for {mode.name} (pip install {PACKAGE})"
        raise ContractError("backend", expected, "no package 'flash_qla'")
    try:
        package: Any = importlib.import_module("flash_qla")
        launchers()
    except ContractError:
        raise
    except ImportError as error:
        expected = f"package {PACKAGE} with what it needs (pip install {PACKAGE})"
        raise ContractError("backend", expected, f"{error}") from error
    except Exception as error:
        # it asks for the GPU when it is imported
        lines = str(error).strip().splitlines() or [type(error).__name__]
        expected = f"a GPU that {PACKAGE} supports, and nvcc (compute capability 9.0, 10.0, 10.3, 12.0 or 12.1)"
        raise ContractError("backend", expected, lines[0]) from error
    version = installed(PACKAGE) or str(getattr(package, "__version__", "of unknown version"))
    chunk = package.chunk_gated_delta_rule
    if lacking := TAKEN - set(inspect.signature(chunk).parameters):
        text = f"{PACKAGE} {version}, whose chunk_gated_delta_rule has no {', '.join(sorted(lacking))}"
        raise ContractError("backend", f"{PACKAGE} >= 0.1.3", text)
    return Package(f"{version} (tilelang {installed('tilelang') or 'of unknown version'}; {mode.text})", chunk)


class FlashQla(Watched):
    """FlashQLA as it decides itself: long sequences of few heads are split inside the card.

    ``batch_invariant=True`` is passed on as ``auto_cp=False``, which splits none.

    Attributes:
        ran: form, or form and " backward" -> the TileLang and Triton kernels seen in watched calls.
    """

    mode: ClassVar[Mode] = AUTO
    operator = "gated_delta_rule"
    # its form takes no slot index
    conventions = Conventions(padding=Padding.NONE)

    def __init__(self) -> None:
        super().__init__()
        self._package = load(self.mode)
        self.name = self.mode.name
        self.version = self._package.version
        self.unsupported: Mapping[str, str] = {**LACKS, **self.mode.lacks}

    def chunk(self, call: SequenceCall) -> Result:
        """Run FlashQLA's chunked function."""
        # a compiler cannot trace the watching
        if torch.compiler.is_compiling():
            return self._made(call)
        of = kind("chunk", call)
        o, final = self._watch("chunk", of, lambda: self._made(call))
        self._watch_backward("chunk", of, o)
        return o, final

    def _made(self, call: SequenceCall) -> Result:
        options = call.options
        result: Result = self._package.chunk(
            q=call.q,
            k=call.k,
            v=call.v,
            g=call.g,
            beta=call.beta,
            scale=options.scale,
            initial_state=call.initial_state,
            output_final_state=call.output_final_state,
            use_qk_l2norm_in_kernel=options.normalize_qk,
            cu_seqlens=call.cu_seqlens,
            state_v_first=options.layout is StateLayout.V_FIRST,
            auto_cp=self.mode.auto_cp and not options.batch_invariant,
            force_intra_cp=self.mode.force_intra_cp,
        )
        return result

    def _mode(self) -> str:
        return self.mode.text

    def _recording(self) -> Recording:
        return TileLangRecording()

    def _complaints(self, what: str, recording: Recording) -> list[str]:
        found = recording.foreign("flash_qla", frozenset())
        wanted = BACKWARD if what.endswith("backward") else FORWARD
        ran = {name.rsplit(".", 1)[-1] for name in recording.kernels}
        if wanted not in ran:
            found.append(f"no {wanted} of FlashQLA")
        if not self.mode.auto_cp and STITCH in ran:
            found.append(f"{STITCH}, which joins parts of a split sequence")
        return found


class FlashQlaSplit(FlashQla):
    """The same with every sequence split that is longer than a segment: short ones show what splitting does."""

    mode = SPLIT


class FlashQlaUnsplit(FlashQla):
    """The same with no sequence split."""

    mode = UNSPLIT
