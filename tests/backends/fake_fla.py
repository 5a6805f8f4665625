"""A stand-in for the package fla: its entry points and dispatch, which keep their arguments and compute little."""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGES = ("fla", "flash_qla", "flash_kda", "tilelang")
FILES = {
    "fla/__init__.py": '__version__ = "0.6.0"\n',
    "fla/utils.py": """
IS_NVIDIA_HOPPER = False
TRITON_ABOVE_3_4_0 = True
TRITON_ABOVE_3_7_1 = False


def has_usable_nvcc():
    return True
""",
    "fla/backends.py": """
import os

_DISPATCH_DISABLED = os.environ.get("FLA_DISABLE_BACKEND_DISPATCH") == "1"


class BaseBackend:
    backend_type = "base"
    variable, default = None, "1"

    def get_implementation(self, function_name):
        return getattr(self, function_name, None)


class FlashQLA(BaseBackend):
    backend_type, variable = "flash_qla", "FLA_FLASH_QLA"

    def chunk_gated_delta_rule(self, **arguments):
        import flash_qla

        return flash_qla.chunk(**arguments)


class FlashKDA(BaseBackend):
    backend_type, variable = "flash_kda", "FLA_FLASH_KDA"

    def chunk_kda(self, **arguments):
        import flash_kda

        return flash_kda.chunk(**arguments)


class Intracard(BaseBackend):
    backend_type, variable, default = "intracard_cp", "FLA_INTRACARD_CP", "0"


REGISTERED = [Intracard(), FlashQLA(), FlashKDA()]


def dispatched(name, function):
    def dispatching(**arguments):
        for backend in REGISTERED:
            if not _DISPATCH_DISABLED and os.environ.get(backend.variable, backend.default) != "0":
                implementation = backend.get_implementation(name)
                if implementation is not None:
                    return implementation(**arguments)
        return function(**arguments)

    dispatching.__name__ = name
    dispatching.__signature__ = __import__("inspect").signature(function)
    return dispatching
""",
    "fla/ops/__init__.py": "",
    "fla/ops/kernels.py": """
class Kernel:
    launched = 0

    def __init__(self, fn):
        self.fn = fn

    def run(self):
        Kernel.launched += 1


def own_kernel():
    pass


def own_backward_kernel():
    pass


OWN, BACKWARD = Kernel(own_kernel), Kernel(own_backward_kernel)
MORE = []
MORE_BACKWARD = []
""",
    "fla/ops/function.py": """
import torch

from fla.ops import kernels


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, v):
        ctx.save_for_backward(q)
        for kernel in [kernels.OWN, *kernels.MORE]:
            kernel.run()
        return v + 1, torch.ones(2)

    @staticmethod
    def backward(ctx, do, dstate):
        for kernel in [kernels.BACKWARD, *kernels.MORE_BACKWARD]:
            kernel.run()
        return ctx.saved_tensors[0] * 0 + 2, None
""",
    "fla/ops/gated_delta_rule.py": """
import torch

from fla.backends import dispatched
from fla.ops.function import Function

CALLS = []


def _chunk(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False,
           use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False, state_v_first=False, cu_seqlens=None, **kwargs):
    CALLS.append(("chunk", {**locals(), **kwargs}))
    return Function.apply(q, v)


def fused_recurrent_gated_delta_rule(q, k, v, g=None, gk=None, gv=None, beta=None, scale=None, initial_state=None,
                                     output_final_state=False, use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False,
                                     A_log=None, dt_bias=None, use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False,
                                     state_v_first=False, cu_seqlens=None, **kwargs):
    CALLS.append(("recurrent", {**locals(), **kwargs}))
    return Function.apply(q, v)


chunk_gated_delta_rule = dispatched("chunk_gated_delta_rule", _chunk)
""",
    "fla/ops/kda.py": """
from fla.backends import dispatched
from fla.ops import kernels
from fla.ops.function import Function

CALLS = []


def _chunk(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False,
           use_gate_in_kernel=False, use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False, safe_gate=False,
           lower_bound=None, return_intermediate_states=False, state_v_first=False, cu_seqlens=None, **kwargs):
    CALLS.append(("chunk", {**locals(), **kwargs}))
    return Function.apply(q, v)


def fused_recurrent_kda(q, k, v, g, beta, A_log=None, dt_bias=None, scale=None, initial_state=None,
                        output_final_state=False, use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False,
                        use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False, lower_bound=None,
                        state_v_first=False, cu_seqlens=None, **kwargs):
    CALLS.append(("recurrent", {**locals(), **kwargs}))
    kernels.OWN.run()
    return v + 1, None


chunk_kda = dispatched("chunk_kda", _chunk)
""",
    "flash_qla.py": """
def chunk(q, v, **arguments):
    return v + 2, None
""",
    "flash_kda.py": """
def chunk(q, v, **arguments):
    return v + 3, None
""",
}


def write(folder: Path, **changes: str | None) -> None:
    """Write the package into a folder; ``changes`` maps a path, with __ for /, to other text, or None for no file."""
    other = {name.replace("__", "/") + ".py": text for name, text in changes.items()}
    for name, text in {**FILES, **other}.items():
        if text is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def forget() -> None:
    """Take the stand-in, or what else was imported under its names, out of this process."""
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]
