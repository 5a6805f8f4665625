"""A rule of the ignore comments themselves: the engine reports it, no module is given to it."""

from __future__ import annotations

from collections.abc import Iterator

from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Rule, Seen
from deltaproof.hazards import Severity


class OwnRule(Rule):
    stable = True
    severity: Severity = "low"

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        return iter(())
