"""A package: fetched as an archive, unpacked with care, and nothing of it is built or run."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile

import pytest

from deltaproof.audit import package as packages
from deltaproof.audit import sdist
from deltaproof.audit.package import archive, download, package, parse
from deltaproof.audit.unpack import PackageError
from deltaproof.contracts.errors import ContractError
from tests.audit.archives import files, tar, wheel


def test_an_sdist_is_unpacked_and_never_built(tmp_path):
    mark = tmp_path / "ran"
    setup = f"open({str(mark)!r}, 'w').close()\n".encode()
    made = tar(
        tmp_path / "p-1.0.tar.gz",
        ("p-1.0", b"", tarfile.DIRTYPE),
        ("p-1.0/setup.py", setup, tarfile.REGTYPE),
        ("p-1.0/pyproject.toml", b"", tarfile.REGTYPE),
    )
    with archive(made) as found:
        assert files(found.root) == ["p-1.0/pyproject.toml", "p-1.0/setup.py"]
        assert (found.name, found.version) == ("p", "1.0")
    assert not mark.exists()
    assert not found.root.exists()


@pytest.mark.parametrize("spec", ["fla-core==0.6.0", "a==1", "zope.interface==5.0.post1+local.1"])
def test_a_name_and_a_version_are_taken(spec):
    assert "==".join(parse(spec)) == spec


@pytest.mark.parametrize(
    "spec", ["fla-core", "fla-core>=1", "-e==1", "a==1 --pre", "a==", "a==-1", "../a==1", "a==1\n"]
)
def test_anything_else_is_refused(spec):
    if spec == "a==1\n":
        assert parse(spec) == ("a", "1")
        return
    with pytest.raises(ContractError, match="--package: expected NAME==VERSION"):
        parse(spec)


def pip(monkeypatch, made=None, code=0, stderr=""):
    """Put a pip in place that lays down a wheel; return the commands that it was called with."""
    calls = []

    def run(command, **options):
        calls.append(command)
        if made is not None:
            folder = command[command.index("--dest") + 1]
            wheel(f"{folder}/{made}", {"p/a.py": "x = 1\n"})
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(packages.subprocess, "run", run)
    return calls


def test_pip_fetches_a_wheel_and_nothing_else(monkeypatch):
    calls = pip(monkeypatch, "p-1.0-py3-none-any.whl")
    with package("p==1.0") as found:
        assert found.archive == "p-1.0-py3-none-any.whl"
        assert files(found.root) == ["p/a.py"]
    [command] = calls
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"--only-binary=:all:", "--no-deps"} <= set(command)
    assert command[-1] == "p==1.0"


def test_without_a_wheel_and_an_sdist_the_reason_is_told(tmp_path, monkeypatch):
    pip(monkeypatch, code=1, stderr="WARNING: x\nERROR: No matching distribution found for p==1.0\n")
    with pytest.raises(PackageError, match=r"no wheel of p==1\.0 .*No matching distribution.*no index has an sdist"):
        download("p", "1.0", tmp_path / "d")


LOG = """
  Found link https://host/p_q-1.0-py3-none-any.whl#sha256=00 (from https://host/simple/p-q/), version: 1.0
  Found link https://host/other-1.0.tar.gz#sha256=11 (from https://host/simple/p-q/), version: 1.0
  Found link https://host/p_q-1.0.post1.tar.gz#sha256=22 (from https://host/simple/p-q/), version: 1.0.post1
  Found link https://host/P.Q-1.0.tar.gz#sha256=33 (from https://host/simple/p-q/), version: 1.0
"""


def test_the_sdists_address_is_found_in_what_pip_lists():
    assert sdist.find_link(LOG.splitlines(), "p-q", "1.0") == "https://host/P.Q-1.0.tar.gz#sha256=33"
    assert sdist.find_link(LOG.splitlines(), "p-q", "2.0") == ""


def test_an_sdist_is_fetched_if_its_checksum_is_the_promised_one(tmp_path):
    made = tar(tmp_path / "p-1.0.tar.gz", ("p-1.0/a.py", b"x = 1\n", tarfile.REGTYPE))
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    (tmp_path / "to").mkdir()
    found = sdist.fetch(f"{made.as_uri()}#sha256={digest}", tmp_path / "to")
    assert found.read_bytes() == made.read_bytes()


@pytest.mark.parametrize("fragment", ["#sha256=" + "0" * 64, "", "#md5=00"])
def test_an_sdist_with_another_checksum_or_none_is_refused(tmp_path, fragment):
    made = tar(tmp_path / "p-1.0.tar.gz", ("p-1.0/a.py", b"x = 1\n", tarfile.REGTYPE))
    (tmp_path / "to").mkdir()
    with pytest.raises(sdist.NoSdist, match="SHA-256"):
        sdist.fetch(made.as_uri() + fragment, tmp_path / "to")
