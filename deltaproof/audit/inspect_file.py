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
IN_TEST = "stands in a test, a benchmark or an example"


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
    lines: tuple[int, int] = (0, 0)
    """First and last line of the statement it stands in; of a compound one those of its header."""


@dataclass
class FileResult:
    """What came of one file.

    Attributes:
        path: relative to the root.
        unreadable: why it was not analysed; empty where it was.
        passing: whether the next run may do better: memory ran out, a process was ended, the auditor failed.
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
    passing: bool = False
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
        # x[i](...) is a launch only where there may be a kernel
        launches = len(module.launches) if kernels or "triton" in module.text else 0
        result.counts = (lines, len(module.functions), kernels, launches)
        result.comments = suppressions(module.text)
    except Unreadable as error:
        result.unreadable, result.passing = visible(str(error)), error.passing
        return result
    except Exception as error:
        result.unreadable, result.passing = visible(f"the auditor failed: {type(error).__name__}: {error}"), True
        return result
    for index, rule in enumerate(rules):
        if rule.triggers and not any(trigger in module.text for trigger in rule.triggers):
            result.ran.add(index)
            continue
        excused = module.is_test and not rule.tests
        try:
            whole = True
            for seen in rule.check(module, project):
                if isinstance(seen, Limit):
                    result.limits.append((index, visible(seen.reason)))
                    whole = False
                elif not excused:
                    (result.hits if isinstance(seen, Hit) else result.drops).append(_place(index, seen))
                elif isinstance(seen, Hit) and seen.module is module:
                    result.drops.append(_place(index, Drop(module, seen.node, seen.function, IN_TEST)))
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
    # a rule may speak of the function around the one that the line stands in
    inner = module.function_at(line)
    function = (inner.qualname if inner is not None else "") if seen.function is None else seen.function.qualname
    if seen.function is not None and inner is not None and inner.qualname.startswith(f"{function}."):
        function = inner.qualname
    where = (rule, visible(module.path), line, max(last_line(node), line), _column(module, node), visible(function))
    if isinstance(seen, Drop):
        return Place(*where, statement="", message=visible(seen.reason))
    evidence = _quote(module, node, visible(seen.message), QUOTED_LINES)
    for quote in seen.quotes:
        evidence += _quote(quote.module, quote.node, visible(quote.why), QUOTED_ELSEWHERE)
    statement = statement_at(module.tree, line)
    lines = (line, line) if statement is None else (getattr(statement, "lineno", line), last_line(statement))
    return Place(
        *where, _statement(module, line, statement), visible(seen.message), seen.verdict, visible(seen.fix), seen.edit,
        tuple(evidence), lines,
    )  # fmt: skip


def _statement(module: Module, line: int, statement: ast.AST | None) -> str:
    plain = " ".join(_line(module, line).split())
    try:
        return plain if statement is None else normalised(statement)
    except (RecursionError, ValueError):
        return plain
