"""An audit as other commands ask for it: of a package, with or without that version installed."""

from __future__ import annotations

import re
import zipfile

import pydantic
import pytest

from deltaproof.audit import package as packages
from deltaproof.audit.package import PackageError
from deltaproof.audit.request import Request, audit_package, carry_out, importable
from deltaproof.contracts.errors import ContractError
from tests.audit.trees import HEAD, kernel

pytestmark = pytest.mark.usefixtures("rule_for_tests_alone")


@pytest.fixture
def fetched(monkeypatch):
    """Put a wheel where pip would."""

    def download(name, version, folder):
        folder.mkdir()
        made = folder / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(made, "w") as file:
            file.writestr("p/ops.py", HEAD + kernel())
        return made

    monkeypatch.setattr(packages, "download", download)


def test_a_package_is_audited_under_its_own_name(fetched):
    report = audit_package("p==1.0")
    assert (report.root, report.targets) == ("p-1.0-py3-none-any.whl", ["p==1.0"])
    assert [(item.path, item.function) for item in report.findings] == [("p/ops.py", "kernel")]


def test_a_package_is_audited_as_asked(fetched):
    with pytest.raises(ContractError, match="at least one rule"):
        audit_package("p==1.0", Request(ignore=["HZ101"]))


def test_a_package_that_cannot_be_had_is_an_error_of_use(monkeypatch):
    def download(name, version, folder):
        raise PackageError("no wheel")

    monkeypatch.setattr(packages, "download", download)
    with pytest.raises(ContractError, match=r"--package: expected a wheel or an sdist .*, got no wheel"):
        audit_package("p==1.0")


def test_only_this_very_version_counts_as_importable():
    assert importable(f"pydantic=={pydantic.VERSION}")
    assert not importable("pydantic==0.0.1")
    assert not importable("no-such-package-of-that-name==1.0")


@pytest.mark.parametrize(
    ("table", "argument"),
    [
        ('select = ["bogus"]', "select: expected a rule's code"),
        ('ignore = ["HZ9999"]', "ignore: expected a rule's code"),
        ('ignore = ["ALL"]', "ignore: expected at least one rule"),
        ('select = [""]', "select: expected codes or names of rules"),
        ('baseline = "no.json"', "baseline: expected a file that can be read"),
    ],
)
def test_what_the_settings_get_wrong_is_named_as_theirs(tmp_path, table, argument):
    (tmp_path / "pyproject.toml").write_text(f"[tool.deltaproof.audit]\n{table}\n")
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(ContractError, match=re.escape(f"pyproject.toml: [tool.deltaproof.audit] {argument}")):
        carry_out(Request([tmp_path], cached=False))
