"""The JSON schemas of what deltaproof writes."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from deltaproof.reports.audit import AUDIT_SCHEMA_VERSION, AuditReport
from deltaproof.reports.claims import CLAIMS_SCHEMA_VERSION, ClaimsReport
from deltaproof.reports.model import SCHEMA_VERSION, VerifyReport
from deltaproof.reports.mutants import MUTANTS_SCHEMA_VERSION, MatrixReport
from deltaproof.reports.scenario import SCENARIO_SCHEMA_VERSION, ScenarioReport
from deltaproof.reports.source_mutants import SOURCE_MUTANTS_SCHEMA_VERSION, SourceMutantsReport


def _schema(model: type[BaseModel], name: str, version: int) -> dict[str, Any]:
    schema = model.model_json_schema(mode="serialization")
    schema["properties"]["schema_version"]["const"] = version
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:deltaproof:schema:{name}-{version}",
        **schema,
    }


def verify_schema() -> dict[str, Any]:
    """Return the schema of a report as `deltaproof verify --format json` writes it."""
    return _schema(VerifyReport, "verify", SCHEMA_VERSION)


def mutants_schema() -> dict[str, Any]:
    """Return the schema of a report as `deltaproof verify --mutants --format json` writes it."""
    return _schema(MatrixReport, "mutants", MUTANTS_SCHEMA_VERSION)


def source_mutants_schema() -> dict[str, Any]:
    """Return the schema of a report as `deltaproof verify --source-mutants --format json` writes it."""
    return _schema(SourceMutantsReport, "source-mutants", SOURCE_MUTANTS_SCHEMA_VERSION)


def scenario_schema() -> dict[str, Any]:
    """Return the schema of a report as `deltaproof verify --scenario serving --format json` writes it."""
    return _schema(ScenarioReport, "scenario", SCENARIO_SCHEMA_VERSION)


def audit_schema() -> dict[str, Any]:
    """Return the schema of a report as `deltaproof audit --format json` writes it."""
    return _schema(AuditReport, "audit", AUDIT_SCHEMA_VERSION)


def claims_schema() -> dict[str, Any]:
    """Return the schema of a report as `deltaproof audit --claims --format json` writes it."""
    return _schema(ClaimsReport, "claims", CLAIMS_SCHEMA_VERSION)


def schema_files() -> dict[str, str]:
    """Return the text of every schema file by its path inside the docs folder."""
    schemas = {
        f"schemas/verify-{SCHEMA_VERSION}.json": verify_schema(),
        f"schemas/mutants-{MUTANTS_SCHEMA_VERSION}.json": mutants_schema(),
        f"schemas/source-mutants-{SOURCE_MUTANTS_SCHEMA_VERSION}.json": source_mutants_schema(),
        f"schemas/scenario-{SCENARIO_SCHEMA_VERSION}.json": scenario_schema(),
        f"schemas/audit-{AUDIT_SCHEMA_VERSION}.json": audit_schema(),
        f"schemas/claims-{CLAIMS_SCHEMA_VERSION}.json": claims_schema(),
    }
    return {path: json.dumps(schema, indent=2) + "\n" for path, schema in schemas.items()}
