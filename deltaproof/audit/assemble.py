"""What the rules saw in all files, made findings: repeats dropped, ignore comments heard, fingerprints given."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict

from deltaproof.audit import registry
from deltaproof.audit.fingerprint import Fingerprints
from deltaproof.audit.inspect_file import FileResult, Place
from deltaproof.audit.own_rules import INVALID, OWN_RULES, UNUSED
from deltaproof.audit.rule import Rule
from deltaproof.audit.suppress import FORM, Suppression
from deltaproof.hazards import HAZARDS, Hazard, Severity
from deltaproof.reports.audit import Analysed, Dismissed, Edit, Evidence, Finding, Fix, NotAnalysed
from deltaproof.reports.visible import visible

ADAPTERS = {"fla": "fla"}
"""Package of the audited file → the backend that ``deltaproof verify`` calls it by."""
VERIFIED = ("gated_delta_rule", "gdn")
"""What the path of a file says if verify's probes run what is in it."""


class Assembled(BaseModel):
    """The part of a report that follows from the files and the rules alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    findings: list[Finding]
    suppressed: list[Dismissed]
    dismissed: list[Dismissed]
    not_analysed: list[NotAnalysed]
    analysed: Analysed
    checked: list[str]
    failed: bool = False


def assemble(files: Iterable[FileResult], rules: Sequence[Rule], skipped: Iterable[tuple[str, str]]) -> Assembled:
    """Return what came of a run.

    Args:
        files: the results of the files that are reported on; what rules saw in others is left out.
        rules: the rules that ran, as the places count them.
        skipped: paths that were passed over, and why.
    """
    results = sorted(files, key=lambda result: result.path)
    read = {result.path: result for result in results if not result.unreadable}
    not_analysed = [NotAnalysed(path=path, reason=reason) for path, reason in skipped]
    not_analysed += [NotAnalysed(path=item.path, reason=item.unreadable) for item in results if item.unreadable]
    for result in results:
        for index, error in result.failures:
            not_analysed.append(NotAnalysed(path=result.path, reason=f"rule {rules[index].name} failed: {error}"))
        for index, reason in result.limits:
            not_analysed.append(NotAnalysed(path=result.path, reason=f"rule {rules[index].name} stopped: {reason}"))

    places: dict[str, list[Place]] = {path: [] for path in read}
    for place in _once(hit for result in results for hit in result.hits):
        if place.path in places:
            places[place.path].append(place)
    findings: list[Finding] = []
    suppressed: list[Dismissed] = []
    for path, result in read.items():
        found, silenced = _of_file(result, places[path], rules)
        findings += found
        suppressed += silenced
    dismissed = [
        _dismissed(rules[place.rule], place, place.message)
        for place in _once(drop for result in results for drop in result.drops)
        if place.path in read
    ]
    lines, functions, kernels, launches = (sum(item.counts[part] for item in read.values()) for part in range(4))
    return Assembled(
        findings=findings,
        suppressed=suppressed,
        dismissed=dismissed,
        not_analysed=sorted(not_analysed, key=lambda item: (item.path, item.reason)),
        analysed=Analysed(files=len(read), lines=lines, functions=functions, kernels=kernels, launches=launches),
        checked=list(read),
        failed=any(result.failures or result.passing for result in results),
    )


def _once(places: Iterable[Place]) -> list[Place]:
    """Return the places in order, each rule's sight of one spot once: it may show from several files."""
    found: dict[tuple[str, int, int, int, str], Place] = {}
    for place in places:
        found.setdefault((place.path, place.line, place.column, place.rule, place.message), place)
    return [found[key] for key in sorted(found)]


def _of_file(
    result: FileResult, places: Sequence[Place], rules: Sequence[Rule]
) -> tuple[list[Finding], list[Dismissed]]:
    fingerprints = Fingerprints()
    findings: list[Finding] = []
    suppressed: list[Dismissed] = []
    used: set[tuple[Suppression, str]] = set()
    for place in places:
        rule = rules[place.rule]
        finding = _finding(rule, place, fingerprints.of(rule.code, place.function, place.statement))
        names = (rule.code, rule.name)
        first, last = min(place.line, place.lines[0] or place.line), max(place.end_line, place.lines[1])
        heard = [comment for comment in result.comments if comment.covers(first, last, names)]
        used |= {(comment, name.lower()) for comment in heard for name in names}
        if heard:
            suppressed.append(_dismissed(rule, place, visible(f"ignored in line {heard[0].line}: {heard[0].reason}")))
        else:
            findings.append(finding)
    for comment in result.comments:
        findings += _of_comment(comment, result, rules, used, fingerprints)
    return findings, suppressed


def _of_comment(
    comment: Suppression, result: FileResult, rules: Sequence[Rule], used: set[tuple[Suppression, str]],
    fingerprints: Fingerprints,
) -> list[Finding]:  # fmt: skip
    """Return what is wrong with an ignore comment, as far as the rules of comments run."""
    wrong: list[tuple[Rule, str, str]] = []
    if comment.problem:
        wrong.append((INVALID, f"this ignore comment silences nothing: {comment.problem}", f"write `{FORM}`"))
    for key in () if comment.problem else comment.keys:
        rule = registry.find(key, (*rules, *registry.all_rules(), *OWN_RULES))
        if rule is None:
            wrong.append((INVALID, f"this ignore comment names {key!r}, which is no rule", "name a rule or its code"))
        elif (comment, key) not in used and rule in rules and rules.index(rule) in result.ran:
            wrong.append((UNUSED, f"{rule.name} finds nothing here that this comment could silence", "remove it"))
    found = []
    for rule, message, fix in wrong:
        if rule not in rules:
            continue
        message = visible(message)
        edit = None
        if rule is UNUSED and comment.end and len(comment.keys) == 1:
            edit = Edit(
                line=comment.line, column=comment.column, end_line=comment.line, end_column=comment.end, text=""
            )
        place = Place(
            rules.index(rule), result.path, comment.line, comment.line, comment.column, "",
            ",".join(comment.keys), message, "proven", fix, edit,
            (Evidence(path=result.path, line=comment.line, text=visible(comment.text), why=message),),
        )  # fmt: skip
        found.append(_finding(rule, place, fingerprints.of(rule.code, "", place.statement)))
    return found


def _dismissed(rule: Rule, place: Place, reason: str) -> Dismissed:
    return Dismissed(
        code=rule.code, name=rule.name, path=place.path, line=place.line, function=place.function, reason=reason
    )


def _hazard(rule: Rule) -> Hazard | None:
    return next((entry for entry in HAZARDS.values() if entry.code == rule.code or entry.name == rule.name), None)


def _finding(rule: Rule, place: Place, fingerprint: str) -> Finding:
    hazard = _hazard(rule)
    severity: Severity = hazard.severity if hazard is not None else getattr(rule, "severity", "medium")
    probe = hazard.probes[0] if hazard is not None and hazard.probes else None
    return Finding(
        code=rule.code,
        name=rule.name,
        path=place.path,
        line=place.line,
        end_line=place.end_line,
        column=place.column,
        function=place.function,
        severity=severity,
        verdict=place.verdict,
        message=place.message,
        fix=Fix(text=place.fix, edit=place.edit),
        evidence=list(place.evidence),
        probe=probe,
        **{"try": _try(place.path, probe)},
        fingerprint=fingerprint,
        preview=not rule.stable,
    )


def _try(path: str, probe: str | None) -> str | None:
    """Return the command that makes the hazard happen, where verify has an adapter to what the file holds."""
    if probe is None or not any(word in path.lower() for word in VERIFIED):
        return None
    package = next((name for part in PurePosixPath(path).parts for name in (ADAPTERS.get(part),) if name), None)
    if package is None:
        return None
    return shlex.join(["deltaproof", "verify", "--backend", package, "--probe", probe])
