"""A package: fetched as an archive, unpacked with care, and nothing of it is built or run."""

from __future__ import annotations

import hashlib
import io
import stat
import subprocess
import tarfile
import zipfile

import pytest

from deltaproof.audit import package as packages
from deltaproof.audit import sdist
from deltaproof.audit.package import PackageError, archive, download, package, parse, unpack
from deltaproof.contracts.errors import ContractError


def wheel(path, members, attributes=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = dict(attributes).get(name, stat.S_IFREG | 0o644) << 16
            file.writestr(info, content)
    return path


def tar(path, *members):
    with tarfile.open(path, "w:gz") as file:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            file.addfile(info, io.BytesIO(content))
    return path


def files(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_of_a_wheel_the_python_files_are_unpacked(tmp_path):
    made = wheel(tmp_path / "p.whl", {"p/a.py": "x = 1\n", "p/lib.so": "elf", "p-1.dist-info/METADATA": "Name: p"})
    unpack(made, tmp_path / "out")
    assert files(tmp_path / "out") == ["p/a.py"]
    assert (tmp_path / "out" / "p" / "a.py").read_text() == "x = 1\n"


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


@pytest.mark.parametrize(
    "name", ["../evil.py", "a/../../evil.py", "/evil.py", "..\\evil.py", "C:/evil.py", "\\evil.py"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_path_that_leaves_the_archive_is_refused_and_nothing_is_left(tmp_path, name, kind):
    if kind == "zip":
        made = wheel(tmp_path / "p.whl", {"good.py": "", name: "x = 1\n"})
    else:
        made = tar(tmp_path / "p.tar.gz", ("good.py", b"", tarfile.REGTYPE), (name, b"x = 1\n", tarfile.REGTYPE))
    with pytest.raises(PackageError, match="a path that leaves the archive"):
        unpack(made, tmp_path / "in" / "out")
    assert [path for path in tmp_path.rglob("*evil*")] == []
    assert not (tmp_path / "in" / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_an_sdist_are_refused(tmp_path, kind):
    made = tar(tmp_path / "p.tar.gz", ("a.py", b"", kind))
    with pytest.raises(PackageError, match=r"member 'a\.py' is a link or a device"):
        unpack(made, tmp_path / "out")


def test_a_link_in_a_wheel_is_refused(tmp_path):
    made = wheel(tmp_path / "p.whl", {"a.py": "/etc/passwd"}, [("a.py", stat.S_IFLNK | 0o777)])
    with pytest.raises(PackageError, match="is a link or a device"):
        unpack(made, tmp_path / "out")


@pytest.mark.parametrize("name", ["a.py", "data.bin"])
def test_a_decompression_bomb_is_refused(tmp_path, name):
    made = wheel(tmp_path / "p.whl", {name: b"\0" * (packages.FREE_BYTES * 3)})
    assert made.stat().st_size < packages.FREE_BYTES // 100
    with pytest.raises(PackageError, match="a decompression bomb"):
        unpack(made, tmp_path / "out")


def test_a_bomb_in_an_sdist_is_refused(tmp_path):
    made = tar(tmp_path / "p.tar.gz", ("a.bin", b"\0" * (packages.FREE_BYTES * 3), tarfile.REGTYPE))
    with pytest.raises(PackageError, match="a decompression bomb"):
        unpack(made, tmp_path / "out")


def test_a_member_that_is_larger_than_it_says_is_refused(tmp_path, monkeypatch):
    made = wheel(tmp_path / "p.whl", {"a.py": b"#" * 5_000_000})
    raw = made.read_bytes()
    lie = raw.replace((5_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert lie != raw
    made.write_bytes(lie)
    with pytest.raises(PackageError):
        unpack(made, tmp_path / "out")


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "MOST_FILES", 10)
    made = wheel(tmp_path / "p.whl", {f"{n}.py": "" for n in range(11)})
    with pytest.raises(PackageError, match="more than 10 members"):
        unpack(made, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off", b"\x1f\x8b\x08 cut off"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "p.whl").write_bytes(content)
    with pytest.raises(PackageError, match=r"p\.whl"):
        unpack(tmp_path / "p.whl", tmp_path / "out")


def test_of_two_members_of_one_name_the_first_is_kept(tmp_path):
    path = tmp_path / "p.whl"
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("a.py", "first")
        file.writestr("a.py", "second")
    unpack(path, tmp_path / "out")
    assert (tmp_path / "out" / "a.py").read_text() == "first"


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
