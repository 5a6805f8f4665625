"""A pattern scan: a heading with rule, path and line, a fenced excerpt, a verdict, and words about it."""

from __future__ import annotations

import re

from deltaproof.audit.claims.blocks import Line, lines, paragraphs
from deltaproof.audit.claims.claim import Claim, Reading
from deltaproof.audit.claims.formats.shared import SPAN, Body, span

FORMAT = "pattern scan"
_HEADING = re.compile(
    r"^\s{0,3}#{1,6}\s+(?P<title>[^`\n]{0,200}?)\s*\b(?:in|at)\s+"
    rf"(?:`(?P<ticked>[^`\n]{{1,1000}}?)`|(?P<path>[^\s`:]{{1,1000}}))\s*[:,]\s*(?:lines?\s*)?{SPAN}\s*$"
)
_INSIDE = re.compile(
    rf"^\s{{0,3}}#{{1,6}}\s+(?P<title>[^`\n]{{0,200}}?)\s*\b(?:in|at)\s+`(?P<ticked>[^`\n]{{1,1000}}?):{SPAN}`\s*$"
)
_VERDICT = re.compile(r"\[\s*([A-Z][A-Z _-]{2,40})\s*\]")
_HARMLESS = re.compile(r"\b(?:SAFE|OK|NO[ _-](?:BUG|ISSUE)|FALSE[ _-]POSITIVE|NOT[ _-]A[ _-]BUG|CLEAN)\b")
_UNABLE = re.compile(r"\b(?:unable to|cannot|can't) (?:examine|inspect|review|audit|see|access|analy[sz]e|verify)\b")


def read(text: str) -> Reading:
    """Return the claims of a pattern scan."""
    claims: list[Claim] = []
    left: list[Line] = []
    body: Body | None = None
    for line in lines(text, lambda raw: _heading(raw) is not None):
        found = None if line.fence else _heading(line.text)
        if found:
            title, path, first, last = found
            claims.append(Claim(path, first, last, title=title, at=line.number))
            body = Body(claims[-1])
        elif body is None or (line.level and not line.fence):
            body = None
            left.append(line)
        else:
            _judge(claims[-1], line)
            body.add(line)
    return Reading(FORMAT, claims, paragraphs(left))


def _heading(text: str) -> tuple[str, str, int, int] | None:
    found = _INSIDE.match(text) or _HEADING.match(text)
    if found is None:
        return None
    groups = found.groupdict()
    title = " ".join(re.sub(r"[^\x00-\x7f]|\*\*", " ", groups["title"]).split()).strip(" *_[]:")
    first, last = span(*found.groups()[-2:])
    return title, groups.get("ticked") or groups.get("path") or "", first, last


def _judge(claim: Claim, line: Line) -> None:
    """Note the verdict that the report itself gives, and whether it gives an all-clear."""
    if line.fence:
        return
    verdict = _VERDICT.search(line.text[:200])
    if verdict and "[" not in claim.title:
        claim.title += f" [{verdict[1].strip()}]"
        if _HARMLESS.search(verdict[1]):
            claim.nothing = f"the report's own verdict is {verdict[1].strip()}"
    elif not claim.excerpts and not claim.nothing and _UNABLE.search(line.text):
        claim.nothing = "the report says that it could not examine the file"
