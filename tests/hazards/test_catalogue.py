"""The hazard catalogue is complete, consistent data, and needs neither torch nor triton."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from deltaproof.contracts.clauses import CLAUSES
from deltaproof.contracts.errors import ContractError
from deltaproof.hazards import FAMILIES, HAZARDS, SEVERITIES, hazard

# Names and codes are published: suppressions and reports carry them, so they never change meaning.
PUBLISHED = {
    "HZ101": "unmasked-load",
    "HZ102": "unmasked-store",
    "HZ103": "narrow-offset",
    "HZ104": "oversized-grid-axis",
    "HZ105": "missing-base-offset",
    "HZ106": "assumed-contiguous",
    "HZ107": "racing-store",
    "HZ201": "unwritten-output",
    "HZ202": "mask-by-multiply",
    "HZ301": "unchecked-state-layout",
    "HZ302": "padding-slot-address",
    "HZ303": "aliased-slot",
    "HZ304": "appended-cache",
    "HZ401": "gradient-arity",
    "HZ402": "unthreaded-option",
    "HZ403": "wrong-gradient",
    "HZ501": "rank-divergent-random",
    "HZ502": "rank-dependent-collective",
    "HZ601": "unguarded-division",
    "HZ602": "unbounded-exp",
    "HZ603": "low-precision-accumulate",
    "HZ701": "ignored-tile-parameter",
    "HZ702": "incomplete-cache-key",
    "HZ703": "autotuned-in-place",
    "HZ704": "resource-limit",
    "HZ801": "square-state-test",
    "HZ802": "zero-state-test",
    "HZ803": "forward-only-test",
    "HZ901": "causal-mask-in-block-diffusion",
    "HZ902": "commit-before-forward",
}
PROBES = set(
    [
        "values",
        "chunk_states",
        "gradients",
        "layouts",
        "ragged",
        "varlen",
        "splitting",
        "poison",
        "redzones",
        "slots",
        "inputs_unchanged",
        "strides",
        "repeatability",
        "invariance",
        "causality",
        "correlated_keys",
        "extreme_gates",
        "large_offsets",
        "graph",
        "compile",
        "leases",
        "conv_values",
        "conv_slots",
        "drafts",
        "conv_drafts",
        "conv_rows",
        "conv_large_offsets",
    ]
)

each_hazard = pytest.mark.parametrize("entry", HAZARDS.values(), ids=lambda entry: entry.code)


def test_published_names_and_codes_are_all_there():
    assert {entry.code: name for name, entry in HAZARDS.items()} == PUBLISHED


def test_codes_are_unique_and_in_order():
    codes = [entry.code for family in FAMILIES.values() for entry in family]
    assert len(codes) == len(HAZARDS)
    assert codes == sorted(set(codes))


@each_hazard
def test_every_hazard_is_complete(entry):
    assert entry.severity in SEVERITIES
    for text in (entry.what, entry.why, entry.avoid):
        assert text[0].isupper() or text.startswith("exp")
        assert text.endswith(".")
    assert entry.stories or entry.also_seen, "a hazard is in the catalogue because it was seen"
    assert entry.rows is None or entry.rows > 0


@each_hazard
def test_every_clause_it_breaks_exists(entry):
    assert set(entry.clauses) <= set(CLAUSES)
    # Version 1 promises nothing about block diffusion yet.
    assert entry.clauses or entry.code.startswith("HZ9")


@each_hazard
def test_every_probe_that_shows_it_is_known(entry):
    assert set(entry.probes) <= PROBES
    assert len(set(entry.probes)) == len(entry.probes)


@each_hazard
def test_every_story_says_where_to_read_it(entry):
    for story in entry.stories:
        assert re.fullmatch(r"[\w-]+/[\w-]+", story.repo)
        assert re.fullmatch(r"#\d+|[0-9a-f]{8}|HEAD", story.reference)
        assert story.text.endswith(".") and "\n" not in story.text
        page = r"(pull/\d+|commit/[0-9a-f]{40})"
        assert story.url is None or re.fullmatch(rf"https://github\.com/{story.repo}/{page}", story.url)


@pytest.mark.parametrize("key", ["padding-slot-address", "HZ302", "hz302", " Padding-Slot-Address "])
def test_a_hazard_is_found_by_name_or_code(key):
    assert hazard(key).code == "HZ302"


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("padding-slot-adress", "padding-slot-address"), ("HZ309", "HZ30"), ("unmaskedload", "unmasked-load")],
)
def test_an_unknown_name_suggests_the_nearest(key, nearest):
    with pytest.raises(ContractError, match=rf"^hazard: expected the name or code .*{nearest}.*, got '{key}'$"):
        hazard(key)


def test_hazards_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        HAZARDS["aliased-slot"].severity = "low"
    with pytest.raises(TypeError):
        HAZARDS["aliased-slot"] = HAZARDS["unmasked-load"]


@pytest.mark.parametrize(
    "module", ["deltaproof.hazards", "deltaproof.contracts.clauses", "deltaproof.reports.explain", "deltaproof.cli.app"]
)
def test_importing_it_loads_neither_torch_nor_triton(module):
    code = f"import sys, {module}; print(*sorted({{'torch', 'triton'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
