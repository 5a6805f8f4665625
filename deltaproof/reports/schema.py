"""The JSON schemas of what deltaproof writes."""

from __future__ import annotations

import json
from typing import Any

from deltaproof.reports.model import SCHEMA_VERSION, VerifyReport


def verify_schema() -> dict[str, Any]:
    """Return the schema of a report as `deltaproof verify --format json` writes it."""
    schema = VerifyReport.model_json_schema(mode="serialization")
    schema["properties"]["schema_version"]["const"] = SCHEMA_VERSION
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:deltaproof:schema:verify-{SCHEMA_VERSION}",
        **schema,
    }


def schema_files() -> dict[str, str]:
    """Return the text of every schema file by its path inside the docs folder."""
    return {f"schemas/verify-{SCHEMA_VERSION}.json": json.dumps(verify_schema(), indent=2) + "\n"}
