"""transformers' models through our operators, against transformers' own path with fla absent."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from deltaproof.contracts.errors import ContractError  # noqa: E402
from deltaproof.integrations.transformers import FAMILIES as NAMES  # noqa: E402
from deltaproof.integrations.transformers import SUPPORTED, in_force, use_deltaproof  # noqa: E402
from deltaproof.integrations.transformers_demo import (  # noqa: E402
    FORWARD_TOLERANCE,
    GRADIENT_TOLERANCE,
)
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend  # noqa: E402
from deltaproof.ops.kda.torch_backend import TorchBackend as KdaTorchBackend  # noqa: E402

pytestmark = pytest.mark.skipif(
    any(find_spec(package) for package in ("fla", "causal_conv1d")), reason="transformers would not run its own path"
)

PROMPT, SPLIT, STEPS, PADDING, LINEAR_LAYERS = 70, 41, 6, 23, 2
QWEN = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "initializer_range": 0.15,
    "pad_token_id": 0,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3_next": ("Qwen3NextForCausalLM", "Qwen3NextConfig", {**QWEN, **EXPERTS}),
    "qwen3_5": ("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", QWEN),
    "qwen3_5_moe": ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeTextConfig", {**QWEN, **EXPERTS}),
    # Its betas go up to 2, and it has no grouped value heads.
    "olmo_hybrid": (
        "OlmoHybridForCausalLM",
        "OlmoHybridConfig",
        {**QWEN, "linear_num_key_heads": 4, "linear_allow_neg_eigval": True, "eos_token_id": None},
    ),
    # A latent attention every third layer, and experts from the second layer on.
    "kimi_linear": (
        "KimiLinearForCausalLM",
        "KimiLinearConfig",
        {
            **{name: QWEN[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
            **{
                name: QWEN[name] for name in ("layer_types", "num_attention_heads", "initializer_range", "pad_token_id")
            },
            "num_key_value_heads": 2,
            "moe_intermediate_size": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "eos_token_id": None,
            "bos_token_id": None,
        },
    ),
}


class Counting:
    """A torch backend, counting what reaches it."""

    def __init__(self) -> None:
        self.chunks = self.steps = 0
        self.largest_beta = 0.0

    def chunk(self, call):
        self.chunks += 1
        self.largest_beta = max(self.largest_beta, float(call.beta.detach().max()))
        return super().chunk(call)

    def recurrent(self, call):
        self.steps += 1
        return super().recurrent(call)


class CountingBackend(Counting, TorchBackend):
    pass


class KdaCountingBackend(Counting, KdaTorchBackend):
    pass


def counting(family: str) -> Counting:
    return KdaCountingBackend() if family == "kimi_linear" else CountingBackend()


def build(family: str, seed: int = 0):
    model, config, entries = FAMILIES[family]
    module = import_module(f"transformers.models.{family}.modeling_{family}")
    configuration = import_module(f"transformers.models.{family}.configuration_{family}")
    torch.manual_seed(seed)
    return getattr(module, model)(getattr(configuration, config)(**entries)).eval()


def functions(family: str) -> tuple[Any, Any]:
    module = import_module(f"transformers.models.{family}.modeling_{family}")
    names = NAMES[family]
    return getattr(module, names.chunk), getattr(module, names.recurrent)


@torch.no_grad()
def prefill(model, ids):
    return model(ids, use_cache=False).logits


@torch.no_grad()
def decode(model, ids, mask=None, parts=1):
    """Prefill in one or two parts, then take the likeliest token step by step; logits of every step, and tokens."""
    mask = torch.ones_like(ids) if mask is None else mask
    cut = SPLIT if parts == 2 else ids.shape[1]
    out = model(ids[:, :cut], attention_mask=mask[:, :cut], use_cache=True)
    if parts == 2:
        out = model(ids[:, cut:], attention_mask=mask, past_key_values=out.past_key_values, use_cache=True)
    logits, tokens = [out.logits[:, -1]], []
    for _ in range(STEPS):
        tokens.append(logits[-1].argmax(-1, keepdim=True))
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = model(tokens[-1], attention_mask=mask, past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[:, -1])
    return torch.stack(logits), torch.cat(tokens, dim=1)


def gradients(model, ids):
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def share(ours, own) -> float:
    """The largest difference as a share of the largest value; not a number where either is not finite."""
    return float((ours - own).abs().max() / own.abs().max())


@dataclass
class Own:
    """A model and what transformers' own path makes of it, before any replacement."""

    family: str
    model: Any
    ids: Any
    mask: Any
    prefill: Any
    decode: Any
    padded: Any
    padded_prefill: Any
    gradients: Any


@pytest.fixture(scope="module", params=SUPPORTED)
def own(request):
    assert not in_force()
    model = build(request.param)
    ids = torch.randint(1, 64, (2, PROMPT), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    with torch.no_grad():
        padded_prefill = model(ids * mask, attention_mask=mask).logits[mask.bool()]
    return Own(
        request.param,
        model,
        ids,
        mask,
        prefill(model, ids),
        decode(model, ids),
        decode(model, ids * mask, mask),
        padded_prefill,
        gradients(model, ids),
    )


class TestSameAsTransformersOwnPath:
    def test_prefill(self, own):
        backend = counting(own.family)
        with use_deltaproof(backend=backend):
            ours = prefill(own.model, own.ids)
        assert backend.chunks == LINEAR_LAYERS
        assert share(ours, own.prefill) <= FORWARD_TOLERANCE

    def test_cached_decoding_step_by_step(self, own):
        backend = counting(own.family)
        with use_deltaproof(backend=backend):
            logits, tokens = decode(own.model, own.ids)
        assert (backend.chunks, backend.steps) == (LINEAR_LAYERS, LINEAR_LAYERS * STEPS)
        assert tokens.equal(own.decode[1])
        for step in range(STEPS + 1):
            assert share(logits[step], own.decode[0][step]) <= FORWARD_TOLERANCE, f"step {step}"

    def test_a_prefill_in_two_parts_gives_the_same_tokens(self, own):
        backend = counting(own.family)
        with use_deltaproof(backend=backend):
            logits, tokens = decode(own.model, own.ids, parts=2)
        assert (backend.chunks, backend.steps) == (2 * LINEAR_LAYERS, LINEAR_LAYERS * STEPS)
        assert tokens.equal(own.decode[1])
        assert share(logits, own.decode[0]) <= FORWARD_TOLERANCE

    def test_left_padded_batch(self, own):
        backend = counting(own.family)
        with use_deltaproof(backend=backend), torch.no_grad():
            whole = own.model(own.ids * own.mask, attention_mask=own.mask).logits[own.mask.bool()]
            logits, tokens = decode(own.model, own.ids * own.mask, own.mask)
        assert (backend.chunks, backend.steps) == (2 * LINEAR_LAYERS, LINEAR_LAYERS * STEPS)
        assert share(whole, own.padded_prefill) <= FORWARD_TOLERANCE
        assert tokens.equal(own.padded[1])
        for step in range(STEPS + 1):
            assert share(logits[step], own.padded[0][step]) <= FORWARD_TOLERANCE, f"step {step}"

    def test_gradients_of_all_parameters(self, own):
        backend = counting(own.family)
        with use_deltaproof(backend=backend):
            ours = gradients(own.model, own.ids)
        assert backend.chunks == LINEAR_LAYERS
        assert ours.keys() == own.gradients.keys()
        assert any("A_log" in name for name in ours)
        largest = max(float(gradient.abs().max()) for gradient in own.gradients.values())
        for name, gradient in ours.items():
            assert share(gradient, own.gradients[name]) <= GRADIENT_TOLERANCE, name
            # A sum over batch and tokens; where it cancels, its own scale is too small to hold the others to.
            assert float((gradient - own.gradients[name]).abs().max()) <= 4 * FORWARD_TOLERANCE * largest, name

    def test_generate(self, own):
        with use_deltaproof() as replacement:
            made = own.model.generate(own.ids, max_new_tokens=STEPS, do_sample=False)
        assert replacement.calls.chunk == LINEAR_LAYERS
        assert replacement.calls.recurrent == LINEAR_LAYERS * (STEPS - 1)
        assert made[:, PROMPT:].equal(own.decode[1])

    def test_a_model_built_under_the_replacement_is_the_same_model(self, own):
        backend = counting(own.family)
        with use_deltaproof(backend=backend):
            ours = prefill(build(own.family), own.ids)
        assert backend.chunks == LINEAR_LAYERS
        assert share(ours, own.prefill) <= FORWARD_TOLERANCE

    def test_a_cache_filled_by_one_path_is_read_by_the_other(self, own):
        with torch.no_grad():
            before = own.model(own.ids, use_cache=True)
            token = own.decode[1][:, :1]
            with use_deltaproof() as replacement:
                logits = own.model(token, past_key_values=before.past_key_values, use_cache=True).logits[:, -1]
        assert replacement.calls.recurrent == LINEAR_LAYERS
        assert share(logits, own.decode[0][1]) <= FORWARD_TOLERANCE


def test_olmo_hybrid_sends_betas_above_one():
    backend = CountingBackend()
    with use_deltaproof(backend=backend):
        prefill(build("olmo_hybrid"), torch.arange(1, 40)[None])
    assert backend.largest_beta > 1.0


class TestBfloat16:
    def test_the_cache_keeps_float32_states_as_transformers_does(self):
        model = build("qwen3_next").to(torch.bfloat16)
        ids = torch.arange(1, 40)[None]
        with torch.no_grad():
            own = model(ids, use_cache=True)
            with use_deltaproof() as replacement:
                ours = model(ids, use_cache=True)
                ours_next = model(ids[:, :1], past_key_values=ours.past_key_values, use_cache=True)
        assert (replacement.calls.chunk, replacement.calls.recurrent) == (LINEAR_LAYERS, LINEAR_LAYERS)
        for out in (own, ours, ours_next):
            assert out.logits.dtype == torch.bfloat16
            assert out.past_key_values.layers[0].recurrent_states[0].dtype == torch.float32


@pytest.fixture
def tensors():
    torch.manual_seed(3)
    q, k = torch.randn(2, 1, 30, 2, 8)
    v = torch.randn(1, 30, 2, 12)
    g, beta = -torch.rand(1, 30, 2), torch.rand(1, 30, 2)
    return q, k, v, g, beta


class TestArgumentsOfTheFunctions:
    @pytest.mark.parametrize("which", [0, 1])
    def test_an_initial_state_in_bfloat16_gives_a_float32_state(self, tensors, which):
        q, k, v, g, beta = tensors
        start = torch.randn(1, 2, 8, 12).to(torch.bfloat16)
        settings = {"g": g, "beta": beta, "initial_state": start, "output_final_state": True}
        own_o, own_state = functions("qwen3_next")[which](q, k, v, **settings)
        with use_deltaproof():
            o, state = functions("qwen3_next")[which](q, k, v, **settings)
        assert state.dtype == own_state.dtype == torch.float32
        assert share(o, own_o) <= FORWARD_TOLERANCE
        assert share(state, own_state) <= FORWARD_TOLERANCE

    @pytest.mark.parametrize("which", [0, 1])
    def test_bounds_of_a_packed_batch_are_honoured(self, tensors, which):
        q, k, v, g, beta = tensors
        with use_deltaproof():
            rule = functions("qwen3_next")[which]
            packed, _ = rule(q, k, v, g=g, beta=beta, cu_seqlens=torch.tensor([0, 11, 30]))
            second, _ = rule(q[:, 11:], k[:, 11:], v[:, 11:], g=g[:, 11:], beta=beta[:, 11:])
            unpacked, _ = rule(q, k, v, g=g, beta=beta)
        assert share(packed[:, 11:], second) <= FORWARD_TOLERANCE
        assert share(unpacked[:, 11:], second) > 1e-2

    @pytest.mark.parametrize("which", [0, 1])
    def test_arguments_meant_for_attention_are_ignored(self, tensors, which):
        q, k, v, g, beta = tensors
        with use_deltaproof():
            rule = functions("qwen3_next")[which]
            plain, _ = rule(q, k, v, g=g, beta=beta)
            extra, _ = rule(q, k, v, g=g, beta=beta, output_attentions=True, use_cache=True, max_length_q=30)
        assert extra.equal(plain)

    @pytest.mark.parametrize("which", [0, 1])
    def test_an_unknown_argument_is_an_error_that_names_it(self, tensors, which):
        q, k, v, g, beta = tensors
        with use_deltaproof(), pytest.raises(ContractError, match="head_first: expected an argument of the gated"):
            functions("qwen3_next")[which](q, k, v, g=g, beta=beta, head_first=True)

    def test_a_packed_batch_reaches_the_rule_through_the_model(self):
        model = build("qwen3_next")
        ids = torch.arange(1, 31)[None]
        bounds = torch.tensor([0, 11, 30])
        seen = []

        class Recording(TorchBackend):
            def chunk(self, call):
                seen.append(call.cu_seqlens)
                return super().chunk(call)

        with use_deltaproof(backend=Recording()), torch.no_grad():
            model(ids, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=19, max_length_k=19, use_cache=False)
        assert [bound.tolist() for bound in seen] == [[0, 11, 30]] * LINEAR_LAYERS


class TestKimiLinear:
    def test_a_packed_batch_reaches_the_rule_through_the_model(self):
        seen = []

        class Recording(KdaTorchBackend):
            def chunk(self, call):
                seen.append(call.cu_seqlens)
                return super().chunk(call)

        bounds = torch.tensor([0, 11, 30])
        with use_deltaproof(backend=Recording()), torch.no_grad():
            build("kimi_linear")(torch.arange(1, 31)[None], cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, use_cache=False)
        assert [bound.tolist() for bound in seen] == [[0, 11, 30]] * LINEAR_LAYERS

    def test_a_backend_covers_the_families_of_its_operator(self):
        with use_deltaproof(backend=KdaCountingBackend()) as replacement:
            assert replacement.models == ("kimi_linear",)
        with use_deltaproof(backend=CountingBackend()) as replacement:
            assert set(replacement.models) == set(SUPPORTED) - {"kimi_linear"}
        with use_deltaproof(backend="torch") as replacement:
            assert replacement.models == SUPPORTED

    def test_a_family_asked_for_that_the_backend_is_not_for_is_an_error(self):
        before = functions("kimi_linear")
        with pytest.raises(ContractError, match="backend: expected a backend of kda, got one of gated_delta_rule"):
            use_deltaproof(backend=CountingBackend(), models=["qwen3_next", "kimi_linear"])
        assert functions("kimi_linear") == before and not in_force()
