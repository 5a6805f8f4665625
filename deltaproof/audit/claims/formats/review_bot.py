"""A review bot's comments: a path, then places in it, in a list for a program or in a page for people."""

from __future__ import annotations

import re
from dataclasses import replace

from deltaproof.audit.claims.blocks import Line, lines, paragraphs
from deltaproof.audit.claims.claim import Claim, Reading
from deltaproof.audit.claims.formats.shared import PATH, SPAN, Body, span

FORMAT = "review bot"
_IN = re.compile(
    rf"^\s*In `?@?(?P<path>[^`\n]{{1,1000}}?|{PATH})`?\s*(?::\s*$|,?\s*(?=(?:around|at|on)\s+lines?\b))", re.IGNORECASE
)
_AROUND = re.compile(
    rf"^\s*(?:[-*+]\s+)?(?:\*\*)?(?:(?:around|at|on)\s+)?lines?\s+{SPAN}\s*(?:\*\*)?\s*[:,.](?:\*\*)?\s*(?P<rest>.*)$",
    re.IGNORECASE,
)
_TICKED = re.compile(rf"^\s*(?:[-*+]\s+)?`{SPAN}`\s*:\s*(?P<rest>.*)$")
_FILE = re.compile(rf"^\s*(?:#{{1,6}}\s*)?`?(?P<path>{PATH})`?\s*\(\d+\)\s*$")
_ALSO = re.compile(
    r"^\s*(?:[-*+]\s+)?(?:\*\*)?also applies to\s*:?(?:\*\*)?\s*:?\s*(?:lines?\s*)?(?P<rest>[\dLl].*)$", re.IGNORECASE
)
_SECTION = re.compile(
    r"^(?P<name>inline|outside(?: the)? diff|duplicate|nitpick|additional|actionable|minor|major|critical|potential)\b"
    r"[\w /]*\b(?:comments?|issues?)(?: posted)?\s*(?:\(\d+\))?\s*:?\s*\d*$",
    re.IGNORECASE,
)
_SEVERITY = re.compile(r"\b(critical|major|minor|trivial|nitpick|blocker|info)\b", re.IGNORECASE)
_BADGE = re.compile(
    r"^\s*_?[^\x00-\x7f]|\|\s*_?[^\x00-\x7f]|\b(?:potential issue|refactor suggestion|nitpick)\b", re.IGNORECASE
)
_HELP = re.compile(
    r"^\s*(?:prompt for|verify (?:each|this|these) (?:finding|against)|as per coding guidelines)", re.IGNORECASE
)
_PROMPT = re.compile(r"^\W*prompt for\b", re.IGNORECASE)
_CODE = ("diff", "suggestion", "patch")


class _Reader:
    def __init__(self) -> None:
        self.claims: list[Claim] = []
        self.left: list[Line] = []
        self.path = ""
        self.severity: str | None = None
        self.duplicate = False
        self.prompt = False
        self.body: Body | None = None

    def line(self, line: Line) -> None:
        text = line.text
        if line.fence and (line.language in _CODE or line.language not in ("", "text", "txt", "md", "markdown")):
            self._keep(line, as_text=False)
            return
        head = _IN.match(text)
        if head:
            self.body = None
            self.path = head["path"].strip()
            text = text[head.end() :]
            if not text.strip():
                return
        file = _FILE.match(text)
        place = _AROUND.match(text) or _TICKED.match(text)
        also = _ALSO.match(text)
        section = _SECTION.match(line.bare)
        if file:
            self.body, self.path, self.prompt = None, file["path"], False
        elif also and self.claims and self.claims[-1].path == self.path:
            self._also(also["rest"], line.number)
        elif place and self.path:
            self.prompt = self.prompt and not _TICKED.match(text)
            self._open(place, line)
        elif section:
            self.body, self.path, self.prompt = None, "", False
            name = section["name"].lower()
            self.duplicate = name == "duplicate"
            self.severity = "nitpick" if name == "nitpick" else None
        elif line.rule or line.level or _HELP.match(line.bare):
            self.body = None
            self.prompt = self.prompt or _PROMPT.match(line.bare) is not None
            if not line.rule:
                self.left.append(line)
        else:
            self._keep(line, as_text=True)

    def _open(self, place: re.Match[str], line: Line) -> None:
        first, last = span(place[1], place[2])
        claim = Claim(self.path, first, last, self.severity, at=line.number)
        claim.duplicate, claim.prompt = self.duplicate, self.prompt
        self.claims.append(claim)
        self.body = Body(claim)
        rest = place["rest"].strip()
        if _badged(rest, claim):
            return
        if rest:
            self.body.add(Line(line.number, rest))

    def _also(self, places: str, number: int) -> None:
        """Make the claim before again at each further place."""
        claim = self.claims[-1]
        for found in list(re.finditer(SPAN, places))[:50]:
            first, last = span(found[1], found[2])
            self.claims.append(replace(claim, first=first, last=last, also=True, at=number))
        self.body = None

    def _keep(self, line: Line, *, as_text: bool) -> None:
        if self.body is None:
            self.left.append(line)
            return
        if not line.fence and _badged(line.text, self.body.claim):
            return
        self.body.add(line, as_text=as_text)


def read(text: str) -> Reading:
    """Return the claims of a review bot's comments."""
    reader = _Reader()
    for line in lines(text, lambda raw: _IN.match(raw) is not None and raw.rstrip().endswith(":")):
        reader.line(line)
    for claim in reader.claims:
        words = next((text for text in claim.prose if text), "")
        claim.title = " ".join(words.replace("*", "").split())[:100]
    return Reading(FORMAT, reader.claims, paragraphs([line for line in reader.left if not line.fence]))


def _badged(text: str, claim: Claim) -> bool:
    """Take the severity of a line that holds nothing but badges."""
    if len(text) > 200 or "`" in text or not _BADGE.search(text):
        return False
    words = re.sub(r"[^A-Za-z| ]", " ", text)
    if any(len(part.split()) > 3 for part in words.split("|")):
        return False
    severity = _SEVERITY.search(words)
    if severity:
        claim.severity = severity[1].lower()
    return True
