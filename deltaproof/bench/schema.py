"""The JSON schema of what ``deltaproof bench --json`` writes. Imports no torch."""

from __future__ import annotations

import json
from typing import Any

from deltaproof.bench.model import BENCH_SCHEMA_VERSION, BenchReport


def bench_schema() -> dict[str, Any]:
    """Return the schema of a bench report."""
    schema = BenchReport.model_json_schema(mode="serialization")
    schema["properties"]["schema_version"]["const"] = BENCH_SCHEMA_VERSION
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:deltaproof:schema:bench-{BENCH_SCHEMA_VERSION}",
        **schema,
    }


def bench_schema_files() -> dict[str, str]:
    """Return the text of the schema file by its path inside the docs folder."""
    return {f"schemas/bench-{BENCH_SCHEMA_VERSION}.json": json.dumps(bench_schema(), indent=2) + "\n"}
