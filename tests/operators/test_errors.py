"""Clause E1: every bad argument is refused by name, with what was expected and what came, and nothing has changed.

A row is a legal call (the control, which is made and must pass) and the smallest change that spoils it. The last
test counts: every place in the code that raises ContractError is reached by some row.
"""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pytest
import torch

import deltaproof
from deltaproof import ContractError
from deltaproof.backends import registry as backends
from deltaproof.operators import arguments, delta_rule, gated_delta_rule, kda
from deltaproof.ops import registry as operators
from deltaproof.ops.common import checks, draft_checks, pool_checks, slot_checks
from tests.operators import bad_draft_calls, bad_kda_calls, bad_pool_calls, bad_sequence_calls
from tests.operators.bad_calls import ALL, DECODE, HV, POOL, PREFILL, Call, K, Row, S, V, fill, packed, plain

TABLE = [*bad_sequence_calls.ROWS, *bad_pool_calls.ROWS, *bad_draft_calls.ROWS, *bad_kda_calls.ROWS]
CASES = [(function, row) for row in TABLE for function in row.functions]
CHECKED = (
    arguments,
    delta_rule,
    gated_delta_rule,
    kda,
    checks,
    draft_checks,
    pool_checks,
    slot_checks,
    backends,
    operators,
)

every_case = pytest.mark.parametrize(
    ("function", "row"), CASES, ids=[f"{row.argument}-{row.got}-{function}" for function, row in CASES]
)


def memory(call: Call) -> dict[str, torch.Tensor]:
    """Return a copy of the bytes behind every tensor of a call, gaps between strides included."""
    parts = call["drafts"]._asdict() if isinstance(call.get("drafts"), tuple) else {}
    named = call | {f"drafts.{name}": x for name, x in parts.items()}
    tensors = {name: x for name, x in named.items() if isinstance(x, torch.Tensor) and x.device.type == "cpu"}
    return {name: torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage()).clone() for name, x in tensors.items()}


def spoiled(function: str, row: Row) -> Call:
    """Make the control's call and return the arguments of the bad one."""
    call = plain(function)
    call |= row.legal(call)
    with torch.no_grad():
        getattr(deltaproof, function)(**call)
    return call | row.spoil(call)


def refusal(function: str, row: Row) -> tuple[Call, dict[str, torch.Tensor], pytest.ExceptionInfo[ContractError]]:
    call = spoiled(function, row)
    before = memory(call)
    with row.context(), pytest.raises(ContractError) as caught:
        getattr(deltaproof, function)(**call)
    return call, before, caught


@every_case
def test_a_bad_argument_is_refused_by_name_and_nothing_changes(function, row):
    call, before, caught = refusal(function, row)
    error = caught.value
    assert isinstance(error, ValueError)
    assert error.argument == row.argument
    assert row.expected in error.expected
    assert row.got in str(error.got)
    assert str(error) == f"{error.argument}: expected {error.expected}, got {error.got}"
    after = memory(call)
    assert all(torch.equal(after[name], before[name]) for name in before)


def raise_sites(module: ModuleType) -> dict[tuple[str, int], str]:
    """Return every line of every ``raise ContractError(...)`` of a module, each with the statement's place."""
    path = str(inspect.getsourcefile(module))
    sites = {}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            assert isinstance(node.exc.func, ast.Name) and node.end_lineno is not None
            if node.exc.func.id == "ContractError":
                sites |= {(path, line): f"{path}:{node.lineno}" for line in range(node.lineno, node.end_lineno + 1)}
    return sites


def test_the_table_reaches_every_place_that_raises_contract_error():
    sites = {line: site for module in CHECKED for line, site in raise_sites(module).items()}
    assert len(set(sites.values())) > 50, "the search for raise statements finds nothing"
    reached = set()
    for function, row in CASES:
        last = refusal(function, row)[2].traceback[-1]
        reached.add(sites[str(last.path), last.lineno + 1])
    assert sorted(set(sites.values()) - reached) == []


@pytest.mark.parametrize("function", ALL)
def test_values_are_not_looked_at_where_only_shapes_are_asked_for(function):
    call = plain(function)
    wrong = call | fill("g", 0.5)(call) | fill("beta", 2.5)(call)
    o = getattr(deltaproof, function)(**wrong, validate="shapes")
    o = o if function in POOL else o[0]
    assert bool(o.isfinite().all())
    for validate in (None, "values"):
        with pytest.raises(ContractError, match=r"g: expected log gates g <= 0, got 0\.5"):
            getattr(deltaproof, function)(**wrong, validate=validate)


@pytest.mark.parametrize("function", ALL)
def test_values_of_tokens_nobody_uses_are_not_judged(function):
    """A tail row, a padding row and a token past num_tokens may hold anything, NaN too."""
    call = plain(function)
    if function == DECODE:
        call |= {"read_index": torch.tensor([1, -1]), "num_tokens": torch.tensor([2, 3])}
        unused = torch.tensor([[False, False, True], [True, True, True]])
    else:
        call |= packed(call)
        unused = torch.tensor([[False] * 5 + [True]])
        if function == PREFILL:
            call["read_index"] = torch.tensor([1, S])
            unused[0, 2:] = True
    for name in ("q", "k", "v", "g", "beta"):
        call[name] = call[name].clone()
        call[name][unused] = float("nan")
    result = getattr(deltaproof, function)(**call)
    o = result if function in POOL else result[0]
    assert bool((o[unused] == 0).all())
    assert bool((o[~unused] != 0).all())


@pytest.mark.parametrize("function", POOL)
def test_pool_forms_take_tensors_that_require_a_gradient_under_no_grad(function):
    call = plain(function)
    call["q"] = call["q"].requires_grad_()
    with torch.no_grad():
        assert not getattr(deltaproof, function)(**call).requires_grad


@pytest.mark.parametrize("function", POOL)
@pytest.mark.parametrize(
    ("slot", "head"), [(256, 64), (128, 32), (32, 32 * S), (64, 96), (128, 160), (512, 36), (1 << 12, 1 << 8)]
)
def test_slots_and_heads_may_have_any_aligned_strides_that_do_not_overlap(function, slot, head):
    """Also strides that weave slots and heads into one another, and a head size of 4 x 8 with gaps."""
    call = plain(function)
    places = (torch.arange(S)[:, None] * slot + torch.arange(HV) * head).flatten().sort().values
    apart = int((places[1:] - places[:-1]).min()) >= K * V
    memory = torch.zeros(int(places[-1]) + K * V)
    call["pool"] = memory.as_strided((S, HV, K, V), (slot, head, V, 1))
    if apart:
        getattr(deltaproof, function)(**call)
        assert bool((call["pool"][[1, 4]] != 0).any()) and not bool(call["pool"][[0, 2, 3, 5]].any())
    else:
        with pytest.raises(ContractError, match="pool: expected slots and heads that do not overlap"):
            getattr(deltaproof, function)(**call)


def test_a_single_slot_or_head_may_have_any_stride():
    call = plain(DECODE)
    call |= {name: call[name][:1, :, :1] for name in ("q", "k", "v", "g", "beta")}
    memory = torch.zeros(64)
    call |= {"pool": memory.as_strided((1, 1, K, V), (1, 3, V, 1)), "read_index": torch.tensor([0])}
    deltaproof.gated_delta_rule_decode(**call)
    assert bool(memory[: K * V].any()) and not bool(memory[K * V :].any())
