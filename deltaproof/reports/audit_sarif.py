"""The audit as SARIF 2.1.0, for code scanning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from deltaproof.hazards import Severity
from deltaproof.reports.audit import AuditReport, Edit, Evidence, Finding
from deltaproof.reports.audit_summary import advice, quoted, rule_failures
from deltaproof.reports.rule_text import RuleText
from deltaproof.reports.visible import visible

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS: dict[Severity, str] = {"critical": "error", "high": "error", "medium": "warning", "low": "note"}
SCORES: dict[Severity, str] = {"critical": "9.0", "high": "7.0", "medium": "5.0", "low": "2.0"}
"""GitHub orders alerts by this number."""
RANKS = {"reproduced": 100.0, "proven": 90.0, "likely": 60.0, "possible": 30.0}
"""SARIF's rank, from 0 to 100: how sure the verdict is."""
ROOT = "ROOT"


def _uri(path: str) -> str:
    return quote(path, safe="/")


def _artifact(path: str) -> dict[str, Any]:
    return {"uri": _uri(path), "uriBaseId": ROOT}


def _location(path: str, region: dict[str, Any], message: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"physicalLocation": {"artifactLocation": _artifact(path), "region": region}}
    if message is not None:
        found["message"] = {"text": visible(message)}
    return found


def _flow(evidence: list[Evidence]) -> list[dict[str, Any]]:
    locations = [
        {
            "location": _location(
                item.path,
                {
                    "startLine": max(item.line, 1),
                    "endLine": max(item.line, 1) + len(item.texts) - 1,
                    "snippet": {"text": "\n".join(map(visible, item.texts))},
                },
                item.why,
            )
        }
        for item in quoted(evidence)
    ]
    return [{"threadFlows": [{"locations": locations}]}] if locations else []


def _fix(finding: Finding, edit: Edit) -> dict[str, Any]:
    region = {
        "startLine": edit.line,
        "startColumn": edit.column + 1,
        "endLine": edit.end_line,
        "endColumn": edit.end_column + 1,
    }
    replacement = {"deletedRegion": region, "insertedContent": {"text": edit.text}}
    change = {"artifactLocation": _artifact(finding.path), "replacements": [replacement]}
    return {"description": {"text": visible(finding.fix.text)}, "artifactChanges": [change]}


def _result(finding: Finding, index: Mapping[str, int], state: str | None) -> dict[str, Any]:
    region: dict[str, Any] = {"startLine": finding.line, "endLine": finding.end_line}
    region["startColumn"] = finding.column + 1
    if finding.evidence:
        region["snippet"] = {"text": visible(finding.evidence[0].text)}
    location = _location(finding.path, region)
    if finding.function:
        location["logicalLocations"] = [{"fullyQualifiedName": visible(finding.function), "kind": "function"}]
    text = advice(finding)
    if finding.try_:
        text = f"{text.rstrip('.')}. Try: {finding.try_}"
    found: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": index[finding.name],
        "level": LEVELS[finding.severity],
        "rank": RANKS[finding.verdict],
        "message": {"text": visible(text)},
        "locations": [location],
        "partialFingerprints": {"deltaproof/v1": finding.fingerprint},
        "properties": {
            "severity": finding.severity,
            "verdict": finding.verdict,
            "preview": finding.preview,
            "probe": finding.probe,
            "try": finding.try_,
        },
    }
    if flows := _flow(finding.evidence):
        found["codeFlows"] = flows
    if finding.fix.edit is not None:
        found["fixes"] = [_fix(finding, finding.fix.edit)]
    if state is not None:
        found["baselineState"] = state
    return found


def _rule(code: str, name: str, severity: Severity, text: RuleText | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": code,
        "name": name,
        "defaultConfiguration": {"level": LEVELS[severity]},
        "properties": {"problem.severity": LEVELS[severity].replace("note", "recommendation")},
    }
    if text is None:
        return {**found, "shortDescription": {"text": name}, "help": {"text": name}}
    found["shortDescription"] = {"text": text.title}
    found["fullDescription"] = {"text": text.hazard.what if text.hazard is not None else text.title}
    found["help"] = {"text": text.body, "markdown": text.body}
    tags = ["stable" if text.stable else "preview", *(text.hazard.clauses if text.hazard is not None else ())]
    found["properties"] = {**found["properties"], "tags": tags, "security-severity": SCORES[severity]}
    return found


def _severity(text: RuleText | None, found: Severity | None) -> Severity:
    return text.severity if text is not None else found or "medium"


def _notification(path: str, reason: str) -> dict[str, Any]:
    return {
        "level": "warning",
        "message": {"text": visible(f"not analysed: {reason}")},
        "locations": [{"physicalLocation": {"artifactLocation": _artifact(path)}}],
    }


def render(report: AuditReport, rules: Mapping[str, RuleText]) -> str:
    """Return the SARIF log.

    Args:
        report: the audit.
        rules: the texts of rules by their names; those that ran are described.
    """
    every = [*report.findings, *report.known]
    codes = {finding.name: finding.code for finding in every}
    severities = {finding.name: finding.severity for finding in every}
    names = sorted(
        {*report.rules, *codes}, key=lambda name: (rules[name].code if name in rules else codes.get(name, name), name)
    )
    index = {name: number for number, name in enumerate(names)}
    described = []
    for name in names:
        text = rules.get(name)
        code = text.code if text is not None else codes.get(name, name)
        described.append(_rule(code, name, _severity(text, severities.get(name)), text))
    # A baseline's states are given where there is a baseline only.
    old, new = ("unchanged", "new") if report.compared else (None, None)
    run: dict[str, Any] = {
        "tool": {
            "driver": {"name": "deltaproof", "version": report.versions.get("deltaproof", ""), "rules": described}
        },
        "columnKind": "unicodeCodePoints",
        "results": [
            *(_result(finding, index, new) for finding in report.findings),
            *(_result(finding, index, old) for finding in report.known),
        ],
        "artifacts": [{"location": _artifact(path)} for path in report.checked],
        "invocations": [
            {
                "executionSuccessful": not rule_failures(report),
                "commandLine": visible(report.command),
                "toolExecutionNotifications": [_notification(item.path, item.reason) for item in report.not_analysed],
            }
        ],
        "properties": {"analysed": report.analysed.model_dump()},
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2).replace("\x7f", "\\u007f") + "\n"
