"""Backends that the bench's tests name as ``tests/bench/backends.py:ATTR``; all compute with the torch backend."""

from __future__ import annotations

import torch

from deltaproof.contracts.conventions import Conventions, GateSpace, StateLayout
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.ops.kda import torch_backend as kda
from deltaproof.verify.noise.kda import same_dtype


class Peer(TorchBackend):
    """The torch backend by another name."""

    name = "peer"


class Scaled(TorchBackend):
    """Its outputs are a tenth too large."""

    name = "scaled"

    def chunk(self, call):
        o, final = super().chunk(call)
        return o * 1.1, final

    def decode(self, call):
        return super().decode(call).mul_(1.1)


class Forgetful(TorchBackend):
    """Right outputs, but the gradient of beta is another one."""

    name = "forgetful"

    def chunk(self, call):
        return super().chunk(call.with_(beta=call.beta + 0.5 * (call.beta - call.beta.detach())))


class Trampling(TorchBackend):
    """Right outputs and states, and one bit of a slot that no row names."""

    name = "trampling"

    def decode(self, call):
        o = super().decode(call)
        named = set(call.read_index.tolist())
        other = next(slot for slot in range(call.pool.shape[0]) if slot not in named)
        call.pool[other, 0, 0, 0] = torch.nextafter(call.pool[other, 0, 0, 0], torch.tensor(9.0))
        return o


class Raising(TorchBackend):
    """Its chunk form raises."""

    name = "raising"

    def chunk(self, call):
        raise RuntimeError("out of registers\nand more")


class Dense:
    """A peer without a pool, in one layout, that wants gates and norms computed beforehand."""

    name, version, operator = "dense", "1", "gated_delta_rule"
    conventions = Conventions(layouts=(StateLayout.V_FIRST,))
    unsupported = {  # noqa: RUF012
        "gate_in_kernel": "no",
        "beta_sigmoid": "no",
        "normalize_qk": "no",
        "backward": "inference only",
    }

    def recurrent(self, call):
        return TorchBackend().recurrent(call)


class Widening(Dense):
    """Its final state is float32, whatever the initial one was."""

    name = "widening"

    def recurrent(self, call):
        return TorchBackend().recurrent(call.with_(initial_state=call.initial_state.float()))


class Linear(TorchBackend):
    """A peer that takes linear gates."""

    name = "linear"
    conventions = Conventions(gate=GateSpace.LINEAR)

    def chunk(self, call):
        assert (call.g > 0).all()
        return super().chunk(call.with_(g=call.g.log()))


class Float32(TorchBackend):
    """A peer that takes gates and strengths in float32 alone."""

    name = "float32"
    conventions = Conventions(float32_gates=True)

    def chunk(self, call):
        assert call.g.dtype == call.beta.dtype == torch.float32
        return super().chunk(call)


class NoForm:
    """No backend: it has no form."""

    name, version, operator, unsupported = "none", "1", "gated_delta_rule", {}
    conventions = Conventions()


class KdaPeer(kda.TorchBackend):
    """The torch backend of Kimi delta attention by another name."""

    name = "peer"


class KdaScaled(kda.TorchBackend):
    """Its outputs are a tenth too large."""

    name = "scaled"

    def chunk(self, call):
        o, final = super().chunk(call)
        return o * 1.1, final

    def decode(self, call):
        return super().decode(call).mul_(1.1)


class KdaHeadGate(kda.TorchBackend):
    """It takes the gate of a head's first channel for all of them."""

    name = "headgate"

    def chunk(self, call):
        return super().chunk(call.with_(g=call.g[..., :1].expand_as(call.g)))

    def decode(self, call):
        return super().decode(call.with_(g=call.g[..., :1].expand_as(call.g)))


class KdaForgetful(kda.TorchBackend):
    """Right outputs, but the gradient of A_log is another one."""

    name = "forgetful"

    def chunk(self, call):
        return super().chunk(call.with_(A_log=call.A_log + 0.5 * (call.A_log - call.A_log.detach())))


class KdaDense:
    """A peer without a pool that knows the gate by softplus alone."""

    name, version, operator = "dense", "1", "kda"
    conventions = Conventions()
    unsupported = {"lower_bound": "no"}  # noqa: RUF012

    def recurrent(self, call):
        assert not call.options.gate_in_kernel and call.options.beta_sigmoid
        return kda.TorchBackend().recurrent(call)


class KdaRounded(kda.TorchBackend):
    """It rounds its operands to the inputs' dtype, as an ordinary kernel does."""

    name = "rounded"

    def chunk(self, call):
        o, final = same_dtype(call, chunked=True)
        return o.to(call.v.dtype), final
