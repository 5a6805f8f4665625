"""What somebody asks of an audit, and doing it: rules chosen, settings, baseline and cache in place."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from deltaproof.audit import baseline as baselines
from deltaproof.audit import package as packages
from deltaproof.audit import registry
from deltaproof.audit.cache import cache_for
from deltaproof.audit.discover import default_root
from deltaproof.audit.engine import Progress, run
from deltaproof.audit.own_rules import OWN_RULES
from deltaproof.audit.rule import Rule
from deltaproof.audit.settings import TABLE, THRESHOLDS, Settings
from deltaproof.audit.settings import load as load_settings
from deltaproof.contracts.errors import ContractError
from deltaproof.reports.audit import AuditReport


@dataclass(frozen=True)
class Request:
    """An audit that is asked for.

    Attributes:
        targets: files and folders that are reported on.
        root: the tree that rules may look at; None for the targets alone.
        select, ignore, preview: which rules run, beside what the settings say.
        baseline: file of known findings; the settings' one if None.
        all_new: whether no finding counts as known, whatever baseline there is.
        fail_on: severity or verdict that fails the run; the settings' one if None.
        jobs: processes; None for as many as there are cores.
        cached: whether results are kept and used.
        command: how it was called.
        settings: of the project; read from its pyproject.toml if None.
    """

    targets: Sequence[Path] = ()
    root: Path | None = None
    select: Sequence[str] = ()
    ignore: Sequence[str] = ()
    preview: bool = False
    baseline: Path | None = None
    all_new: bool = False
    fail_on: str | None = None
    jobs: int | None = None
    cached: bool = True
    command: str = ""
    settings: Settings | None = field(default=None, repr=False)

    def with_settings(self) -> Request:
        """Return the same with the project's settings filled in.

        Raises:
            ContractError: the settings, or the threshold, are wrong.
        """
        settings = self.settings if self.settings is not None else load_settings(self.place())
        threshold = self.fail_on if self.fail_on is not None else settings.fail_on
        if threshold is not None and threshold not in THRESHOLDS:
            raise ContractError("--fail-on", f"one of {', '.join(THRESHOLDS)}", repr(threshold))
        return replace(self, settings=settings, fail_on=threshold)

    def place(self) -> Path:
        """Return the folder that the settings belong to."""
        return (self.root if self.root is not None else default_root(self.targets)).resolve()

    def rules(self, settings: Settings) -> list[Rule]:
        """Return the rules that run.

        Raises:
            ContractError: a key is no rule's, or no rule is left.
        """
        every = (*registry.all_rules(), *OWN_RULES)
        table = f"{settings.source}: [{TABLE}]"
        selects = "--select" if self.select or not settings.select else f"{table} select"
        ignores = "--ignore" if self.ignore or not settings.ignore else f"{table} ignore"
        rules = registry.chosen(
            every,
            select=self.select or settings.select,
            ignore=(*self.ignore, *settings.ignore),
            preview=self.preview or settings.preview,
            select_argument=selects,
            ignore_argument=ignores,
        )
        # The rules of ignore comments run alone only for whoever asks for that.
        if not self.select and all(rule in OWN_RULES for rule in rules):
            rules = []
        if not rules:
            waiting = sum(not rule.stable for rule in every)
            blamed = ignores if self.ignore or settings.ignore else selects
            raise ContractError(blamed, "at least one rule that runs", f"none ({waiting} more with --preview)")
        return rules


def carry_out(request: Request, progress: Progress | None = None) -> AuditReport:
    """Return what the audit finds.

    Raises:
        ContractError: what is asked for makes no sense.
    """
    asked = request.with_settings()
    settings = asked.settings
    assert settings is not None, "with_settings has filled them in"
    rules = asked.rules(settings)
    place = asked.baseline if asked.baseline is not None else settings.baseline
    argument = "--baseline" if asked.baseline is not None else f"{settings.source}: [{TABLE}] baseline"
    return run(
        asked.targets,
        rules,
        root=asked.root,
        exclude=settings.exclude,
        jobs=asked.jobs,
        cache=cache_for(asked.place()) if asked.cached else None,
        known=None if place is None or asked.all_new else baselines.load(place, argument),
        command=asked.command,
        progress=progress,
    )


def audit_package(spec: str, request: Request | None = None, progress: Progress | None = None) -> AuditReport:
    """Return what the audit finds in a published package, or in a wheel or sdist on disk; nothing of it is run.

    Args:
        spec: ``NAME==VERSION``, or the path of an archive.
        request: how to audit; its targets and root are not used, nor are settings that the package brings along.
        progress: see ``engine.run``.

    Raises:
        ContractError: ``spec`` has another form, or the package cannot be fetched and unpacked.
    """
    on_disk = Path(spec)
    try:
        with packages.archive(on_disk) if on_disk.is_file() else packages.package(spec) as found:
            asked = replace(
                request or Request(), targets=(found.root,), root=found.root, settings=Settings(), cached=False
            )
            # The folder is gone afterwards; what was audited is the archive.
            return carry_out(asked, progress).model_copy(update={"root": found.archive, "targets": [spec]})
    except packages.PackageError as error:
        raise ContractError("--package", "a wheel or an sdist that can be fetched and unpacked", str(error)) from None


def importable(spec: str) -> bool:
    """Return whether this very version of ``NAME==VERSION`` is installed here. Nothing is imported."""
    name, version = packages.parse(spec)
    try:
        return importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        return False
