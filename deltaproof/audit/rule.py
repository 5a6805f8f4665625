"""What a rule is, and what it yields.

A rule is one file in ``rules/``: a docstring with fixed headings, a subclass of ``Rule`` and ``RULE``, its instance.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.reports.audit import Edit, Verdict

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

HEADINGS = ("What it does", "Why it matters", "Example", "Do this instead", "Seen in", "Known limits")
"""What a rule's docstring holds, in this order."""


@dataclass(frozen=True)
class Quote:
    """One line to be quoted, and what it shows."""

    module: Module
    node: ast.AST
    why: str


@dataclass(frozen=True)
class Hit:
    """A hazard that a rule sees.

    Attributes:
        module: where it stands.
        node: the expression or statement.
        function: the function around it; None at module level.
        message: one sentence that names the variables.
        verdict: "proven" only where the source alone decides.
        fix: what to do here instead, one sentence.
        quotes: the other lines that show it; the node's own line comes first by itself.
        edit: a safe replacement, if there is one.
    """

    module: Module
    node: ast.AST
    function: Function | None
    message: str
    verdict: Verdict
    fix: str
    quotes: Sequence[Quote] = ()
    edit: Edit | None = None


@dataclass(frozen=True)
class Drop:
    """A candidate that a rule considered and dropped, with the reason."""

    module: Module
    node: ast.AST
    function: Function | None
    reason: str


@dataclass(frozen=True)
class Limit:
    """What a rule leaves out of a module because it would take too long; named as not analysed."""

    module: Module
    reason: str


Seen = Hit | Drop


class Rule:
    """One rule; subclasses set the attributes and write ``check``.

    Attributes:
        code: code of its hazard, or of its own where it has none ("HZ001").
        name: name of its hazard, or of its own.
        stable: whether its precision was measured and is at least 80 %; else it runs with ``--preview`` only.
        triggers: a module is given to the rule only if its text holds one of these; empty for every module.
        tests: whether it looks at tests and benchmarks too; else only at other code.
    """

    code: str = ""
    name: str = ""
    stable: bool = False
    triggers: tuple[str, ...] = ()
    tests: bool = False

    def check(self, module: Module, project: Project) -> Iterator[Seen | Limit]:
        """Yield what the rule sees in one module."""
        raise NotImplementedError
