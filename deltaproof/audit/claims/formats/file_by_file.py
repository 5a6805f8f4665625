"""A file-by-file audit: a heading with a path, then severity, line, issue and fix, in bold lines or in a table."""

from __future__ import annotations

import re

from deltaproof.audit.claims.blocks import Line, lines, paragraphs
from deltaproof.audit.claims.claim import Claim, Reading
from deltaproof.audit.claims.formats.shared import PATH, SPAN, Body, opens_summary, span

FORMAT = "file by file"
_FILE = re.compile(
    rf"^(?:(?:file(?:name)?|path|module)\s*:?\s*)?[`'\"]?({PATH})[`'\"]?(?:\s*\(.{{0,60}}\))?\s*:?$", re.IGNORECASE
)
_ROOTED = re.compile(r"^[`'\"]?((?:(?:~|\.{1,2}|[A-Za-z]:)[\\/]|/[\w.@+-]+/)[\w.@+~\\/-]+)[`'\"]?\s*:?$")
"""A path that shows by its beginning, so that it needs no ending: `/etc/passwd`."""
_FILE_LINE = re.compile(
    rf"^(?:file(?:name)?|path|location)\s*:\s*[`'\"]?({PATH})[`'\"]?(?::{SPAN})?\s*$", re.IGNORECASE
)
_SEVERITY = re.compile(r"\bseverity\s*[:=]?\s*([A-Za-z]{2,20})", re.IGNORECASE)
_LINES = re.compile(rf"\blines?(?:\(s\)|s)?(?:\s+numbers?)?\s*[:=#]?\s*{SPAN}", re.IGNORECASE)
_MARKER = re.compile(r"^(?:severity\s*[:=]?\s*[A-Za-z]|lines?(?:\(s\)|s)?\s*[:=#]?\s*~?\s*L?\d)", re.IGNORECASE)
_PICTURE = re.compile(r"[^\x00-\x7f]+")
_BEFORE_PATH = re.compile(r"^(?:[^\w./\\`'\"~@]+|\d{1,3}[.)]\s+)+")
_CELL = re.compile(r"(?<!\\)\|")


class _Reader:
    def __init__(self) -> None:
        self.claims: list[Claim] = []
        self.left: list[Line] = []
        self.path = ""
        self.title = ""
        self.section: list[Line] | None = None
        self.named = False
        self.begun = 0
        self.count = 0
        self.body: Body | None = None
        self.columns: dict[str, int] = {}

    def line(self, line: Line) -> None:
        if line.fence:
            self._keep(line)
            return
        named = _path(line)
        path = named or _rooted(line)
        if path:
            self._close()
            self.named = bool(named)
            self.path, self.section, self.begun = path, [], line.number
            self.count = len(self.claims)
        elif opens_summary(line) or (line.level and line.level < 3 and self.section is not None):
            self._end_claim()
            if line.level and line.level < 3:
                self._close()
            self._keep(line)
        elif self._row(line):
            self._end_claim()
        elif _MARKER.match(line.bare):
            self._marker(line)
        elif line.rule:
            self._end_claim()
        elif line.level:
            self._end_claim()
            self.title = line.bare
        else:
            self._keep(line)

    def _keep(self, line: Line) -> None:
        if self.body is not None:
            self.body.add(line)
        elif self.section is not None:
            self.section.append(line)
        else:
            self.left.append(line)

    def _marker(self, line: Line) -> None:
        bare = line.bare
        severity, where = _SEVERITY.search(bare), _LINES.search(bare)
        claim = self.claims[-1] if self.body is not None else None
        again = claim is not None and ((severity and claim.severity is not None) or (where and claim.first is not None))
        if claim is None or again:
            claim = Claim(self.path, title=self.title, at=line.number)
            self.claims.append(claim)
            self.body, self.title = Body(claim), ""
        if severity:
            claim.severity = severity[1].lower()
        if where:
            claim.first, claim.last = span(where[1], where[2])
            rest = bare[where.end() :].strip(" :|-)")
            if rest:
                claim.prose.append(line.text[line.text.find(rest[:10]) :] if rest[:10] in line.text else rest)

    def _row(self, line: Line) -> bool:
        """Take a row of a table; False if the line is none of a table with a column of lines."""
        text = line.text.strip()
        if text.count("|") < 2:
            self.columns = {}
            return False
        cells = _cells(text)
        names = [" ".join(re.sub(r"[^a-z ]", " ", cell.lower()).split()) for cell in cells]
        columns = {_column(name): at for at, name in reversed(list(enumerate(names))) if _column(name)}
        if "line" in columns and ("issue" in columns or "severity" in columns):
            self.columns = columns
            return True
        if not self.columns:
            return False
        if all(re.fullmatch(r":?-+:?", cell) for cell in cells if cell):
            return True
        got = {name: cells[at] for name, at in self.columns.items() if at < len(cells)}
        where = re.search(SPAN, got.get("line", ""))
        claim = Claim(self.path, at=line.number)
        named = re.search(PATH, got.get("file", ""))
        if named:
            claim.path = named[0]
        if where:
            claim.first, claim.last = span(where[1], where[2])
        severity = re.search(r"[A-Za-z]{2,20}", got.get("severity", ""))
        claim.severity = severity[0].lower() if severity else None
        claim.prose.append(got.get("issue", ""))
        self.claims.append(claim)
        return True

    def _end_claim(self) -> None:
        self.body = None

    def _close(self) -> None:
        """End a file's section; one without a claim says that it has none."""
        self._end_claim()
        self.columns, self.title = {}, ""
        if self.section is None:
            return
        if len(self.claims) == self.count and self.named:
            said = " ".join(" ".join(part.text for part in self.section if not part.fence).split())
            why = said if len(said) <= 160 else said[:159] + "..."
            self.claims.append(Claim(self.path, nothing=why or "the section is empty", at=self.begun))
        else:
            self.left += self.section
        self.section, self.path = None, ""


def read(text: str) -> Reading:
    """Return the claims of a file-by-file audit; a section that makes none is one claim of nothing."""
    reader = _Reader()
    for line in lines(text, lambda raw: bool(_path(Line(0, raw)))):
        reader.line(line)
    reader._close()
    return Reading(FORMAT, reader.claims, paragraphs(reader.left))


def _path(line: Line) -> str:
    """Return the path that a line names as what follows is about; empty if it names none."""
    if len(line.text) > 1_000:
        return ""
    found = _FILE.match(_heading_text(line)) if line.level else _FILE_LINE.match(line.bare)
    return found[1] if found else ""


def _rooted(line: Line) -> str:
    """Return the path without an ending that a heading consists of; an empty section below it claims nothing."""
    found = _ROOTED.match(_heading_text(line)) if line.level and len(line.text) <= 1_000 else None
    return found[1] if found else ""


def _heading_text(line: Line) -> str:
    """Return a heading without pictures, emphasis and number."""
    text = _PICTURE.sub(" ", line.text.lstrip(" #")).replace("**", "").strip()
    return _BEFORE_PATH.sub("", text)


def _cells(text: str) -> list[str]:
    """Return the cells of a table's row; a bar between backticks or behind a backslash parts nothing."""
    hidden = re.sub(r"`[^`]*`", lambda match: match[0].replace("|", "\0"), text.strip().strip("|"))
    return [cell.replace("\0", "|").replace("\\|", "|").strip(" *") for cell in _CELL.split(hidden)]


def _column(name: str) -> str:
    if "fix" in name or "suggest" in name or "recommend" in name:
        return "fix"
    for key, starts in (
        ("severity", ("severity", "level", "risk")),
        ("line", ("line", "lines", "location")),
        ("issue", ("issue", "description", "problem", "finding", "details", "bug")),
        ("file", ("file", "path", "module")),
    ):
        if name.startswith(starts):
            return key
    return ""
