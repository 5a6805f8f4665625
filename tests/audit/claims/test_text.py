"""Reports in other encodings, mis-decoded, torn or hostile."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from deltaproof.audit.claims import check_claims
from deltaproof.audit.claims.mojibake import decode, plain, repair
from deltaproof.contracts.errors import ContractError
from tests.audit.claims.conftest import SAMPLES

NAMES = ("scan.md", "files.md", "review.md", "review_page.md")


def misread(data: bytes, codec: str) -> bytes:
    """Return UTF-8 as a program saves it that took it for another encoding."""
    if codec == "cp1252":
        return "".join(
            chr(b) if b in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else bytes([b]).decode(codec) for b in data
        ).encode()
    return data.decode(codec).encode()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("codec", ["cp1252", "mac_roman"])
def test_a_misread_report_says_the_same(check, name, codec):
    data = (SAMPLES / name).read_bytes()
    right, wrong = check(data), check(misread(data, codec))
    assert wrong.misread_as == codec
    assert right.misread_as is None
    assert wrong.claims == right.claims


@pytest.mark.parametrize("codec", ["cp1252", "mac_roman"])
def test_text_misread_twice_is_mended_twice(codec):
    text = "re‑masked … “block”"
    assert repair(misread(misread(text.encode(), codec), codec).decode()) == (text, codec)


@pytest.mark.parametrize(
    "text",
    ["„groß“ und Straße", "été, à côté de l'hôtel’»", "plain", "δ − × 漢字 🚨", "Ã", "Â© alone in été, à côté, ñ"],
)
def test_text_that_was_read_right_stays(text):
    assert repair(text) == (text, None)


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_the_encoding_shows_in_the_bytes(codec):
    assert decode("naïve".encode(codec)) == "naïve"


def test_typography_is_made_plain():
    assert plain("8‑9 “a” ‘b’ c…\u00a0d\r\ne\u200b") == "8-9 \"a\" 'b' c... d\ne"


@pytest.mark.parametrize("data", [b"\x00\x01\x02", bytes(range(256)) * 9, b"# A\n\x00"])
def test_a_binary_file_is_refused(check, data):
    with pytest.raises(ContractError, match="--claims: expected a text file"):
        check(data)


def test_a_report_that_is_no_regular_file_is_refused_and_not_opened(tree, tmp_path):
    os.mkfifo(tmp_path / "pipe.md")
    for place in (tmp_path / "pipe.md", Path("/dev/zero"), tmp_path):
        with pytest.raises(ContractError, match=r"--claims: .* that can be read, got .*not a regular"):
            check_claims(place, tree)


def test_a_missing_report_or_root_is_refused(check, tree, tmp_path):
    with pytest.raises(ContractError, match="--claims"):
        check_claims(tmp_path / "no.md", tree, None)
    with pytest.raises(ContractError, match="--root"):
        check_claims(SAMPLES / "scan.md", tree / "no", None)
    with pytest.raises(ContractError, match="--fixed-root"):
        check_claims(SAMPLES / "scan.md", tree, tree / "no")


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xff\xfe", b"\xef\xbb\xbf", b"```", b"|" * 500, b"> " * 500])
def test_a_report_without_claims_has_none(check, data):
    report = check(data)
    assert (report.claims, report.format) == ([], "none")


@pytest.mark.parametrize(
    "body",
    [
        "a = " + "(1 + " * 100_000,
        "x" * 500_000,
        "`" * 30_000,
        ("`" + "y" * 40 + "\n") * 2_000,
        "'''" * 5_000 + '"""' * 5_001,
        "\\\n" * 5_000,
        "|" * 30_000,
        "# " * 10_000,
        "**" * 10_000,
    ],
)
def test_a_huge_or_torn_excerpt_is_absent_and_no_crash(check, body):
    (claim,) = check(f"## R in `pool/ring.py` : 9\n```python\n{body}").claims
    assert (claim.verdict, claim.found) == ("absent", None)


def test_torn_reports_never_crash_nor_name_files_that_do_not_exist(check, tree):
    draw = random.Random(20)
    pieces = [
        b"```",
        b"`",
        b"|",
        b"\n",
        b"## ",
        b"(((",
        b"'''",
        b"\x1b[2J",
        b"> ",
        b"**",
        b"In `@../../etc/passwd`:\n- Line 1: x\n",
    ]
    for _ in range(60):
        data = bytearray((SAMPLES / draw.choice(NAMES)).read_bytes())
        for _ in range(draw.randrange(1, 30)):
            at = draw.randrange(len(data))
            if draw.random() < 0.5:
                data[at:at] = draw.choice(pieces)
            else:
                del data[at : at + draw.randrange(50)]
        report = check(bytes(data), tree)
        assert all(claim.found is None or (tree / claim.found.path).is_file() for claim in report.claims)
        assert all(claim.path.find("passwd") < 0 or claim.verdict == "no_such_file" for claim in report.claims)
