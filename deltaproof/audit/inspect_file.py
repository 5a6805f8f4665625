"""One file: what the rules see in it, as plain data that goes from process to process."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deltaproof.audit.fingerprint import last_line, normalised, statement_at
from deltaproof.audit.flow.definitions import TooMany
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.model.source import Unreadable
from deltaproof.audit.rule import Drop, Hit, Limit, Rule
from deltaproof.audit.suppress import Suppression, suppressions
from deltaproof.reports.audit import Edit, Evidence, Verdict
from deltaproof.reports.visible import visible

QUOTED_LINES = 6
QUOTED_ELSEWHERE = 1
"""Lines that are quoted of the finding's own statement, and of others; of a longer one the first ones."""
CONTINUED = "continued"


@dataclass(frozen=True)
class Place:
    """A hit or a drop before it is known which comments speak of it."""

    rule: int
    path: str
    line: int
    end_line: int
    column: int
    function: str
    statement: str
    message: str
    verdict: Verdict = "possible"
    fix: str = ""
    edit: Edit | None = None
    evidence: tuple[Evidence, ...] = ()


@dataclass
class FileResult:
    """What came of one file.

    Attributes:
        path: relative to the root.
        unreadable: why it was not analysed; empty where it was.
        hits: what rules found, in other files too.
        drops: what they considered and dropped; ``message`` is the reason.
        failures: the index of each rule that raised, and the error.
        limits: the index of each rule that left a part of the file out, and which.
        ran: indices of the rules that saw all they wanted of the file.
        comments: its ignore comments.
        counts: lines, functions, kernels, launches.
    """

    path: str
    unreadable: str = ""
    hits: list[Place] = field(default_factory=list)
    drops: list[Place] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)
    limits: list[tuple[int, str]] = field(default_factory=list)
    ran: set[int] = field(default_factory=set)
    comments: list[Suppression] = field(default_factory=list)
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)


def inspect_file(path: Path, project: Project, rules: Sequence[Rule]) -> FileResult:
    """Give one file to every rule that wants it. Never raises on what the file holds or what a rule does."""
    result = FileResult(visible(project.relative(path)))
    try:
        module = project.module(path)
        kernels = sum(function.is_kernel for function in module.functions)
        lines = module.text.count("\n") + (not module.text.endswith("\n") and bool(module.text))
        result.counts = (lines, len(module.functions), kernels, len(module.launches))
        result.comments = suppressions(module.text)
    except Unreadable as error:
        result.unreadable = visible(str(error))
        return result
    except Exception as error:
        result.unreadable = visible(f"the auditor failed: {type(error).__name__}: {error}")
        return result
    for index, rule in enumerate(rules):
        unwanted = rule.triggers and not any(trigger in module.text for trigger in rule.triggers)
        if unwanted or (module.is_test and not rule.tests):
            result.ran.add(index)
            continue
        try:
            whole = True
            for seen in rule.check(module, project):
                if isinstance(seen, Limit):
                    result.limits.append((index, visible(seen.reason)))
                    whole = False
                else:
                    (result.hits if isinstance(seen, Hit) else result.drops).append(_place(index, seen))
            if whole:
                result.ran.add(index)
        except TooMany as error:
            result.limits.append((index, visible(str(error))))
        except Exception as error:
            result.failures.append((index, visible(f"{type(error).__name__}: {error}")))
    return result


def _column(module: Module, node: ast.AST) -> int:
    # The parser counts bytes of UTF-8.
    line = _line(module, getattr(node, "lineno", 1))
    return len(line.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))


def _line(module: Module, number: int) -> str:
    return module.lines[number - 1] if 0 < number <= len(module.lines) else ""


def _quote(module: Module, node: ast.AST, why: str, most: int) -> list[Evidence]:
    first = getattr(node, "lineno", 1)
    last = min(max(last_line(node), first), first + most - 1)
    path = visible(module.path)
    return [
        Evidence(
            path=path,
            line=number,
            text=visible(_line(module, number).strip()),
            why=why if number == first else CONTINUED,
        )
        for number in range(first, last + 1)
        # A line of brackets says nothing.
        if number == first or re.search(r"\w", _line(module, number))
    ]


def _place(rule: int, seen: Hit | Drop) -> Place:
    module, node = seen.module, seen.node
    line = getattr(node, "lineno", 1)
    function = "" if seen.function is None else seen.function.qualname
    where = (rule, visible(module.path), line, max(last_line(node), line), _column(module, node), visible(function))
    if isinstance(seen, Drop):
        return Place(*where, statement="", message=visible(seen.reason))
    evidence = _quote(module, node, visible(seen.message), QUOTED_LINES)
    for quote in seen.quotes:
        evidence += _quote(quote.module, quote.node, visible(quote.why), QUOTED_ELSEWHERE)
    return Place(
        *where, _statement(module, line), visible(seen.message), seen.verdict, visible(seen.fix), seen.edit,
        tuple(evidence),
    )  # fmt: skip


def _statement(module: Module, line: int) -> str:
    plain = " ".join(_line(module, line).split())
    statement = statement_at(module.tree, line)
    try:
        return plain if statement is None else normalised(statement)
    except (RecursionError, ValueError):
        return plain
