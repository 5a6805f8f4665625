"""Archives that are damaged, or made to do harm: each is refused whole, or unpacked whole."""

from __future__ import annotations

import gzip
import io
import random
import stat
import tarfile
import tracemalloc
import warnings
import zipfile

import pytest

from deltaproof.audit import unpack as unpacking
from deltaproof.audit.unpack import PackageError, unpack
from tests.audit.archives import files, tar, wheel


def test_of_a_wheel_the_python_files_are_unpacked(tmp_path):
    made = wheel(tmp_path / "p.whl", {"p/a.py": "x = 1\n", "p/lib.so": "elf", "p-1.dist-info/METADATA": "Name: p"})
    unpack(made, tmp_path / "out")
    assert files(tmp_path / "out") == ["p/a.py"]
    assert (tmp_path / "out" / "p" / "a.py").read_text() == "x = 1\n"


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
    made = wheel(tmp_path / "p.whl", {name: b"\0" * (unpacking.FREE_BYTES * 3)})
    assert made.stat().st_size < unpacking.FREE_BYTES // 100
    with pytest.raises(PackageError, match="a decompression bomb"):
        unpack(made, tmp_path / "out")


def test_a_bomb_in_an_sdist_is_refused(tmp_path):
    made = tar(tmp_path / "p.tar.gz", ("a.bin", b"\0" * (unpacking.FREE_BYTES * 3), tarfile.REGTYPE))
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
    monkeypatch.setattr(unpacking, "MOST_FILES", 10)
    made = wheel(tmp_path / "p.whl", {f"{n}.py": "" for n in range(11)})
    with pytest.raises(PackageError, match="more than 10 members"):
        unpack(made, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off", b"\x1f\x8b\x08 cut off"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "p.whl").write_bytes(content)
    with pytest.raises(PackageError, match=r"p\.whl"):
        unpack(tmp_path / "p.whl", tmp_path / "out")


SOURCE = b"x = 1\n" * 4_000
NOISE = random.Random(7).randbytes(20_000).hex().encode()
MODES = ("w", "w:gz", "w:bz2", "w:xz")


def sdist(path, mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for name, content in (("p/noise.py", NOISE), ("p/last.py", SOURCE)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def refused(made, to, match=None):
    """Unpack an archive that has to be refused by its name, and leave nothing behind."""
    with pytest.raises(PackageError, match=match) as caught:
        unpack(made, to)
    assert str(caught.value).startswith(f"{made.name}: ")
    assert not to.exists()


@pytest.mark.parametrize("mode", MODES)
def test_a_tar_is_read_whatever_it_is_compressed_with(tmp_path, mode):
    unpack(sdist(tmp_path / "p", mode), tmp_path / "out")
    assert (tmp_path / "out" / "p" / "noise.py").read_bytes() == NOISE
    assert (tmp_path / "out" / "p" / "last.py").read_bytes() == SOURCE


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_does_not_decompress_is_an_error_of_the_package(tmp_path, compression):
    made = tmp_path / "p.whl"
    with zipfile.ZipFile(made, "w", compression) as file:
        file.writestr("a.py", NOISE)
    raw = bytearray(made.read_bytes())
    raw[60:120] = bytes(byte ^ 0x5A for byte in raw[60:120])
    made.write_bytes(raw)
    refused(made, tmp_path / "out")


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_compressed_tar_that_is_damaged_anywhere_is_refused(tmp_path, mode, at):
    made = sdist(tmp_path / "p", mode)
    raw = bytearray(made.read_bytes())
    middle = int(len(raw) * at)
    raw[middle : middle + 40] = bytes(byte ^ 0x5A for byte in raw[middle : middle + 40])
    made.write_bytes(raw)
    refused(made, tmp_path / "out")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_tar_that_is_cut_off_is_refused(tmp_path, mode, share):
    made = sdist(tmp_path / "p", mode)
    raw = made.read_bytes()
    whole = len(raw) if mode != "w" else len(NOISE) + len(SOURCE)
    made.write_bytes(raw[: int(whole * share)])
    refused(made, tmp_path / "out")


def test_a_tar_that_is_cut_off_between_two_members_is_refused(tmp_path):
    made = sdist(tmp_path / "p", "w")
    made.write_bytes(made.read_bytes()[: 512 + -(-len(NOISE) // 512) * 512])
    refused(made, tmp_path / "out", "damaged or cut off")


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    made = sdist(tmp_path / "p", "w")
    raw = bytearray(made.read_bytes())
    raw[raw.index(b"p/last.py")] ^= 1
    made.write_bytes(raw)
    refused(made, tmp_path / "out", "damaged or cut off: bad checksum")


def test_a_checksum_that_does_not_hold_is_seen_though_all_members_were_read(tmp_path):
    made = sdist(tmp_path / "p.tar.gz")
    raw = bytearray(made.read_bytes())
    raw[-8] ^= 1
    made.write_bytes(raw)
    refused(made, tmp_path / "out", "CRC check failed")


def test_members_behind_the_end_are_not_dropped_without_a_word(tmp_path):
    made = sdist(tmp_path / "p", "w")
    made.write_bytes(made.read_bytes() * 2)
    refused(made, tmp_path / "out", "more behind the end")


def extended(path, kind, size, content=b"", times=1):
    """Write a tar whose only member comes behind extended headers of zeros or of this content."""
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = kind, size
    member = tarfile.TarInfo("a.py")
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(times):
            file.write(header.tobuf(tarfile.USTAR_FORMAT))
            file.write((content + b"\0" * (size - len(content))).ljust(-(-size // 512) * 512, b"\0"))
        file.write(member.tobuf(tarfile.USTAR_FORMAT) + b"\0" * 1024)
    return path


EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


@pytest.mark.parametrize("kind", EXTENDED)
@pytest.mark.parametrize(("size", "times"), [(24 << 20, 1), (200 << 10, 100), (0, 5_000)])
def test_headers_that_would_fill_the_memory_are_refused_before_they_are_read(tmp_path, kind, size, times):
    made = extended(tmp_path / "p.tar.gz", kind, size, times=times)
    tracemalloc.start()
    try:
        refused(made, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_header_of_ordinary_length_is_read(tmp_path):
    name = "long/" * 100 + "a.py"
    record = f"{len(name) + 10} path={name}\n".encode()
    unpack(extended(tmp_path / "p.tar.gz", tarfile.XHDTYPE, len(record), record), tmp_path / "out")
    assert files(tmp_path / "out") == [name]


def test_headers_for_all_members_are_not_kept_with_each(tmp_path):
    whole = {f"key{number}": "v" for number in range(5_000)}
    made = tmp_path / "p.tar.gz"
    with tarfile.open(made, "w:gz", pax_headers=whole, compresslevel=1) as file:
        for number in range(200):
            info = tarfile.TarInfo(f"{number}.py")
            info.pax_headers = {"comment": "its own"}
            file.addfile(info)
    tracemalloc.start()
    try:
        unpack(made, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(files(tmp_path / "out")) == 200
    assert peak < 8 << 20


def test_a_sparse_file_is_refused(tmp_path):
    made = tmp_path / "p.tar"
    info = tarfile.TarInfo("a.py")
    info.type = tarfile.GNUTYPE_SPARSE
    with tarfile.open(made, "w", format=tarfile.GNU_FORMAT) as file:
        file.addfile(info)
    refused(made, tmp_path / "out", "a link or a device")


@pytest.mark.parametrize("second", ["p/a.py", "./p/a.py", "p//a.py"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_two_members_of_one_name_are_refused(tmp_path, kind, second):
    made = tmp_path / "p"
    if kind == "tar":
        tar(made, *((name, name.encode(), tarfile.REGTYPE) for name in ("p/a.py", second)))
    else:
        with zipfile.ZipFile(made, "w") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in ("p/a.py", second):
                file.writestr(name, name)
    refused(made, tmp_path / "out", "is in it twice")


def test_folders_and_data_of_one_name_do_no_harm(tmp_path):
    made = tar(
        tmp_path / "p.tar.gz",
        *[("p", b"", tarfile.DIRTYPE), ("p/data.bin", b"x", tarfile.REGTYPE)] * 2,
        ("p/a.py", b"x = 1\n", tarfile.REGTYPE),
    )
    unpack(made, tmp_path / "out")
    assert files(tmp_path / "out") == ["p/a.py"]


@pytest.mark.parametrize("mode", [*MODES, "zip"])
def test_torn_bytes_end_in_an_error_of_the_package_or_in_the_whole_content(tmp_path, mode):
    made = tmp_path / "p"
    if mode == "zip":
        wheel(made, {"p/noise.py": NOISE, "p/last.py": SOURCE})
    else:
        sdist(made, mode)
    raw = made.read_bytes()
    draw = random.Random(11)
    for number in range(60):
        torn = bytearray(raw)
        for _ in range(draw.randrange(1, 6)):
            torn[draw.choice((draw.randrange(len(torn)), draw.randrange(600)))] = draw.randrange(256)
        made.write_bytes(torn)
        out = tmp_path / f"out{number}"
        try:
            unpack(made, out)
        except PackageError:
            assert not out.exists()
        else:
            # Neither a plain tar nor a zip's list of members has a checksum of everything.
            contents = [(out / name).read_bytes() for name in files(out)]
            assert contents == [SOURCE, NOISE] or mode in ("w", "zip")
