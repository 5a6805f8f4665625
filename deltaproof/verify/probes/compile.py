"""Compile: torch.compile gives what the call gives without it

What it does
    Compiles each form with torch.compile, in the full tier through the public function too, and calls it twice on each
    of two shapes, with other values; sequence forms with their backward. The smoke tier on a CPU tries one shape of the
    chunked forms. The compiler is "aot_eager" on a CPU and "inductor" on a GPU, with dynamic=False. In the full tier an
    option changes between two calls of one shape. Then torch.library.opcheck runs on every custom operator that the
    backend lists in ``custom_ops``, a mapping of "namespace::name" to a callable that returns sample arguments as a
    tuple.

What it shows
    An option that is dropped or baked in when traced, a result kept from the first call, a mutation the tracer does not
    know of, a missing fake implementation or backward of a custom operator.

How it judges
    Clause S0: compiling does not change the function. Outputs and states are held to the oracle and its bounds. On a
    CPU everything, gradients included, must also be bit-identical to the call that is not compiled; on a GPU gradients
    are held to their own bounds. A compilation that raises is a failure. Breaks of the graph are allowed.

What it cannot see
    dynamic=True, other compilers, and options or shapes that it does not try.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.verify.case import Case
from deltaproof.verify.observation import HarnessError, Observation, Skipped, Unsupported, compare
from deltaproof.verify.probe import Call, Context, Plan, Probe
from deltaproof.verify.probes._exact import exact
from deltaproof.verify.probes._runs import Run, make, require
from deltaproof.verify.target import Target

ORDER = 80
PUBLIC, ONE_SHAPE = "public function", "one shape"


class Compile(Probe):
    """Clause S0, compiled."""

    name = "compile"
    clause = "S0"
    clauses = ("S0",)
    hazards = ("unthreaded-option", "incomplete-cache-key")
    timeout = 300.0

    def cases(self, plan: Plan) -> Iterator[Case]:
        form = plan.form
        # compiling is most of the cost, on a CPU of the chunked forms above all
        once = plan.device == "cpu" and not plan.full and form in ("chunk", "prefill")
        tokens = {"recurrent": 2, "decode": 2}.get(form, 9 if once else 20)
        base = Case(form, B=2, T=tokens, H=1, HV=2, K=16, V=32, normalize=False, scale=0.7)
        if form in ("chunk", "prefill"):
            base = base.but(chunk_size=16)
        yield base.but(label=ONE_SHAPE if once else "")
        if plan.full:
            options = base.but(normalize=True, gate_in_kernel=True, beta_sigmoid=True, neg_eigval=True)
            yield options.but(layout="v_first", dtype="bfloat16")
            if form == "decode":
                yield base.but(read=(3, 1), write=((0, 2), (4, 5)), num_tokens=(2, 1))
            yield base.but(label=PUBLIC)
            if plan.operator.gate_per_channel:
                bounded = base.but(label=PUBLIC, gate_in_kernel=True, lower_bound=-5.0)
                yield bounded.but(safe_gate=form in ("chunk", "prefill"))

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        require(context, "compile")
        if case.label == PUBLIC and not context.target.face:
            raise Unsupported("the public functions reach the project's own backends alone")
        backward = not case.is_pool and "backward" not in context.target.backend.unsupported
        torch._dynamo.reset()
        try:
            compiled = _compiled(case, context)
            for shape, turn in _calls(case):
                eager = make(shape, context, context.call(shape, turn=turn), backward=backward)
                first = shape == case and turn == 0
                hazard = self.hazards[0 if first else 1]
                try:
                    run = make(shape, compiled, context.call(shape, turn=turn), backward=backward)
                except (Unsupported, Skipped, HarnessError):
                    raise
                except Exception as error:
                    line = str(error).strip().splitlines()[:1]
                    text = f"torch.compile failed on {shape.id}: {type(error).__name__}: {' '.join(line)}"
                    yield Observation(False, "S0", text, hazard)
                    return
                yield from context.judge(shape, run.outputs, run.call, turn=turn, clause="S0", hazard=hazard)
                yield from self._beside(shape, context, run, eager, turn, hazard)
        finally:
            torch._dynamo.reset()
        yield from _opcheck(case, context)

    def _beside(
        self, case: Case, context: Context, run: Run, eager: Run, turn: int, hazard: str
    ) -> Iterator[Observation]:
        """Compare with the call that was not compiled, or gradients with the oracle where rounding may differ."""
        if context.device != "cuda":
            for name, want in eager.results.items():
                if name not in run.results:
                    yield Observation(False, "S0", f"{name} is missing once compiled", hazard)
                else:
                    yield exact(name, run.results[name], want, "S0", hazard, "compiled and not compiled")
            return
        if not run.cotangents:
            return
        clean = context.call(case, device="cpu", turn=turn)
        arriving = [x.cpu() for x in run.cotangents.values()]
        expected = context.reference.gradients(clean, *arriving, chunked=case.form == "chunk")
        for name, wanted in expected.items():
            got = run.results.get(f"gradient of {name}")
            if got is None:
                yield Observation(False, "S0", f"the gradient of {name} is missing once compiled", hazard)
            else:
                yield compare(got, wanted, "S0", hazard)


def _calls(case: Case) -> Iterator[tuple[Case, int]]:
    """Yield the shapes to call, and which values."""
    shorter = case.but(T={20: 4}.get(case.T, 1), **({"write": None, "num_tokens": None} if case.write else {}))
    for shape in (case,) if case.label == ONE_SHAPE else (case, shorter):
        yield shape, 0
        yield shape, 1
    yield case, 0
    if case.label == PUBLIC:
        yield case.but(scale=0.3), 0


def _compiled(case: Case, context: Context) -> Context:
    """Return a context whose backend is the compiled form."""
    target = context.target
    function = _public(target, case.form) if case.label == PUBLIC else getattr(target.backend, case.form)
    compiler = "inductor" if context.device == "cuda" else "aot_eager"
    compiled: Any = torch.compile(function, backend=compiler, dynamic=False)
    backend: Any = _Compiled(target.backend, case.form, compiled)
    return Context(Target(backend, target.operator, target.source, face=False), context.seed, context.device)


class _Compiled:
    """A backend with one of its forms compiled."""

    def __init__(self, backend: Any, form: str, function: Callable[[Call], Any]) -> None:
        self._backend = backend
        setattr(self, form, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def _public(target: Target, form: str) -> Callable[[Call], Any]:
    """Return the public function of a form, as a function of a call."""
    name = target.operator.name
    module = importlib.import_module(f"deltaproof.operators.{name}")
    names = {"chunk": f"chunk_{name}", "recurrent": f"fused_recurrent_{name}"}
    function = getattr(module, names.get(form, f"{name}_{form}"))
    source = target.source

    def call_public(call: Call) -> Any:
        options = call.options
        arguments: dict[str, Any] = {
            "scale": options.scale,
            "use_qk_l2norm_in_kernel": options.normalize_qk,
            "use_beta_sigmoid_in_kernel": options.beta_sigmoid,
            "allow_neg_eigval": options.neg_eigval,
            "use_gate_in_kernel": options.gate_in_kernel,
            "A_log": call.A_log,
            "dt_bias": call.dt_bias,
            "state_layout": options.layout,
            "backend": source,
            "validate": "shapes",
        }
        if form in ("chunk", "prefill"):
            arguments["chunk_size"] = options.chunk_size
        if target.operator.gate_per_channel:
            arguments["lower_bound"] = options.lower_bound
            if form in ("chunk", "prefill"):
                arguments["safe_gate"] = options.safe_gate
        if isinstance(call, SequenceCall):
            arguments |= {
                "initial_state": call.initial_state,
                "output_final_state": call.output_final_state,
                "cu_seqlens": call.cu_seqlens,
            }
        else:
            shared = ("pool", "read_index", "write_index", "has_initial_state")
            arguments |= {name: getattr(call, name) for name in shared}
        if isinstance(call, DecodeCall):
            arguments["num_tokens"] = call.num_tokens
        if isinstance(call, PrefillCall):
            arguments["cu_seqlens"] = call.cu_seqlens
        return function(q=call.q, k=call.k, v=call.v, g=call.g, beta=call.beta, **arguments)

    return call_public


def _opcheck(case: Case, context: Context) -> Iterator[Observation]:
    """Check the custom operators a backend lists, beside the first form it has."""
    backend: Any = context.target.backend
    forms = [form for form in context.target.operator.forms if callable(getattr(backend, form, None))]
    custom_ops = getattr(backend, "custom_ops", {}) if case.form == forms[0] else {}
    for name, samples in custom_ops.items():
        namespace, _, operator = name.partition("::")
        try:
            overload = getattr(getattr(torch.ops, namespace), operator).default
        except AttributeError:
            text = f"custom_ops names {name}, which is no registered operator"
            yield Observation(False, "S0", text, "unthreaded-option")
            continue
        for test, outcome in torch.library.opcheck(overload, samples(), raise_exception=False).items():
            ok = outcome == "SUCCESS"
            line = " ".join(str(outcome).strip().splitlines()[:1])
            text = "" if ok else f"opcheck {test} of {name}: {type(outcome).__name__}: {line}"
            yield Observation(ok, "S0", text, "unthreaded-option")


PROBE = Compile()
