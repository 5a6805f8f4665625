"""One form of the gated delta rule: ``deltaproof verify --backend examples/my_backend.py:MyBackend``."""

import torch

from deltaproof.backends import Conventions, StateLayout

LATER = "computed by the caller"


class MyBackend:
    name, version, operator = "mine", "1.0", "gated_delta_rule"
    conventions = Conventions(layouts=(StateLayout.K_FIRST,))
    unsupported = {"gate_in_kernel": LATER, "beta_sigmoid": LATER, "varlen": "one sequence a row", "I2": "matmuls"}

    def recurrent(self, call):
        B, T, _, HV, K, V = call.dims
        q, k = (x.float().repeat_interleave(HV // x.shape[2], 2) for x in (call.q, call.k))
        if call.options.normalize_qk:
            q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        v, decay, beta, initial = call.v.float(), call.g.float().exp(), call.beta.float(), call.initial_state
        S, outputs = (q.new_zeros(B, HV, K, V) if initial is None else initial.float()), [v[:, :0]]
        for t in range(T):
            S = S * decay[:, t, :, None, None]
            error = beta[:, t, :, None] * (v[:, t] - (k[:, t, :, None] @ S)[:, :, 0])
            S = S + k[:, t, ..., None] * error[:, :, None]
            outputs.append(call.options.scale * (q[:, t, :, None] @ S).transpose(1, 2))
        final = S.to(torch.float32 if initial is None else initial.dtype, copy=True)
        return torch.cat(outputs, 1).to(call.v.dtype), final if call.output_final_state else None
