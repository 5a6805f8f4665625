"""Workloads are data, and so are JSON files of them, whose mistakes are named."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from deltaproof.bench.workload import DecodeWorkload, SequenceWorkload, read
from deltaproof.contracts.conventions import StateLayout
from deltaproof.contracts.errors import ContractError


def test_a_name_says_heads_and_lengths_and_what_is_unusual():
    assert SequenceWorkload(heads=(2, 8), lengths=(8192,)).name == "2/8 8192"
    assert SequenceWorkload(heads=(16, 64), lengths=(1024,) * 8).name == "16/64 1024x8"
    assert SequenceWorkload(heads=(2, 8), lengths=(28672, 4096, 0, 0)).name == "2/8 28672+4096+0x2"
    unusual = SequenceWorkload(heads=(1, 1), lengths=(5,), K=64, V=32, state_dtype="bfloat16", layout="v_first")
    assert unusual.name == "1/1 5 K=64 V=32 bfloat16 state v_first"
    assert SequenceWorkload(heads=(2, 8), lengths=(9, 8, 7, 6, 0)).name == "2/8 5 of 0 to 9 (30)"
    assert DecodeWorkload(heads=(16, 32), rows=1).name == "16/32 1 row"
    assert DecodeWorkload(heads=(16, 32), rows=8, layout="k_first").name == "16/32 8 rows k_first"


def test_a_file_holds_workloads_of_the_verb(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"workloads": [{"heads": [2, 4], "lengths": [3, 0, 5], "layout": "v_first"}]}))
    (found,) = read(path, "prefill")
    assert found == SequenceWorkload(heads=(2, 4), lengths=(3, 0, 5), layout=StateLayout.V_FIRST)
    path.write_text(json.dumps({"workloads": [{"heads": [2, 4], "rows": 7, "slot_padding": 64}]}))
    assert read(path, "decode") == (DecodeWorkload(heads=(2, 4), rows=7, slot_padding=64),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"workloads": [{"heads": [2, 4], "lengths": []}]}', ["workloads.0.lengths", "at least 1"]),
        ('{"workloads": [{"heads": [4, 2], "lengths": [8]}]}', ["multiple of q,k heads", "4/2"]),
        ('{"workloads": [{"heads": [2, 4], "lengths": [8], "K": 300}]}', ["workloads.0.K", "256"]),
        ('{"workloads": [{"heads": [2, 4], "rows": 3}]}', ["workloads.0.lengths", "required", "rows"]),
        ('{"workloads": [{"heads": [2, 4], "lengths": [-1]}]}', ["workloads.0.lengths.0"]),
        ('{"workloads": [{"heads": [2, 4], "lengths": [8], "layout": "kv"}]}', ["workloads.0.layout", "k_first"]),
        ('{"workloads": []}', ["at least one workload"]),
        ('{"shapes": []}', ["workloads"]),
        ('{"workloads": [', ["JSON"]),
        ('{"workloads": [{"heads": [1, 1], "lengths": [8]}, {"heads": [1, 1], "lengths": [8]}]}', ["1/1 8", "again"]),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, text, words):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ContractError) as raised:
        read(path, "prefill")
    assert raised.value.argument == "--shapes"
    assert all(word in str(raised.value) for word in [*words, "mine.json"]), raised.value


def test_workloads_cannot_be_changed():
    with pytest.raises((ValidationError, AttributeError)):
        SequenceWorkload(heads=(1, 1), lengths=(8,)).K = 1


def test_workloads_results_and_the_table_need_no_torch():
    code = (
        "import sys, deltaproof.bench.schema, deltaproof.bench.text, deltaproof.bench.floors, deltaproof.cli.bench\n"
        "print(sorted({'torch', 'triton', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
