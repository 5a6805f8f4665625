"""Checking a report: every claim gets the first verdict that applies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from deltaproof.audit.claims.claim import Claim
from deltaproof.audit.claims.fixed import compare
from deltaproof.audit.claims.formats import read as read_claims
from deltaproof.audit.claims.grounding import NEAR, Hit, locate, rows_standing, stands
from deltaproof.audit.claims.mojibake import decode, plain, repair
from deltaproof.audit.claims.quotes import Quote, quotes
from deltaproof.audit.claims.repeats import repeated
from deltaproof.audit.claims.tree import Tree
from deltaproof.audit.claims.view import Role, View
from deltaproof.audit.given import read_given
from deltaproof.contracts.errors import ContractError
from deltaproof.reports.claims import CheckedClaim, ClaimsReport, ClaimVerdict, Found

MOST_BYTES = 32 << 20
_LONGEST_QUOTE = 2_000
_ROLES: dict[Role, str] = {
    "docstring": "a docstring",
    "comment": "a comment",
    "string": "a string",
    "self-test": 'the self-test below `if __name__ == "__main__"`',
    "test": "a test",
    "code": "code",
}


@dataclass(frozen=True)
class _Judged:
    verdict: ClaimVerdict
    why: str
    hit: Hit | None = None
    view: View | None = None
    quote: str = ""


def check_claims(report: Path, root: Path, fixed_root: Path | None = None) -> ClaimsReport:
    """Check every claim of a report against a source tree.

    Args:
        report: a Markdown file: a pattern scan, a file-by-file audit or a review bot's comments.
        root: the tree that the report is about.
        fixed_root: a newer tree; what it did to the quoted code is told too.

    Raises:
        ContractError: the report is no readable text file, or a root is no folder.
    """
    for name, folder in (("--root", root), ("--fixed-root", fixed_root)):
        if folder is not None and not folder.is_dir():
            raise ContractError(name, "a folder", folder)
    text, misread = _text(report)
    reading = read_claims(text)
    tree, newer = Tree(root), None if fixed_root is None else Tree(fixed_root)
    judged = [_judge(claim, tree) for claim in reading.claims]
    same = repeated(reading.claims, [(one.hit, one.view) for one in judged])
    for at, origin in enumerate(same):
        # A repeat in plain words says what the claim before it quotes.
        if origin is not None and judged[at].verdict == "absent" and not judged[at].quote:
            judged[at] = replace(judged[origin - 1], why=f"says again what claim {origin} says")
    claims = [
        _checked(index, claim, one, newer, same[index - 1])
        for index, (claim, one) in enumerate(zip(reading.claims, judged, strict=True), 1)
    ]
    return ClaimsReport(
        report=str(report),
        root=str(root),
        fixed_root=None if fixed_root is None else str(fixed_root),
        format=reading.format if claims else "none",
        misread_as=misread,
        claims=claims,
        prose=reading.prose,
    )


def _text(report: Path) -> tuple[str, str | None]:
    text = decode(read_given("--claims", "a report that can be read", report, MOST_BYTES))
    if "\0" in text:
        raise ContractError("--claims", "a text file", f"{report} (it holds NUL bytes)")
    mended, misread = repair(text)
    return plain(mended), misread


def _judge(claim: Claim, tree: Tree) -> _Judged:
    if claim.nothing:
        return _Judged("no_claim", claim.nothing)
    quoted = quotes(claim)
    shown = quoted[0].text if quoted else ""
    paths, why = tree.find(claim.path)
    if not paths:
        return _Judged("no_such_file", why, quote=shown)
    verdicts = [_in_file(claim, quoted, tree.view(path), len(paths)) for path in paths]
    # Several files can end with the claimed path: the claim gets the one that speaks best for it.
    return min(verdicts, key=lambda one: ("grounded", "moved", "not_executable", "absent").index(one.verdict))


def _in_file(claim: Claim, quoted: list[Quote], view: View | str, files: int) -> _Judged:
    shown = quoted[0].text if quoted else ""
    if isinstance(view, str):
        return _Judged("absent", f"the file was not read: {view}", quote=shown)
    said = None if claim.first is None else view.role_of_lines(claim.first, claim.last or claim.first)
    hits = [hit for quote in quoted if (hit := locate(quote, view, claim.first, claim.last)) is not None]
    # An excerpt that stands whole where the claim says, or an expression, needs no help from a name beside it.
    near = [hit for hit in hits if hit.distance <= NEAR]
    hits = [hit for hit in near if hit.whole] or [hit for hit in near if not hit.quote.weak] or hits
    if view.is_test:
        return _judged("not_executable", "the file is a test", _nearest(hits), view, shown)
    if not hits:
        if not quoted and said not in (None, "code"):
            return _Judged("not_executable", f"the line said is in {_ROLES[said or 'code']}", quote=shown)
        return _Judged("absent", _absent(claim, quoted, view, files), quote=shown)
    running = [hit for hit in hits if hit.runs]
    near = [hit for hit in hits if hit.distance <= NEAR]
    if not running or (near and not any(hit.runs for hit in near)):
        hit = min(near or hits, key=lambda one: one.distance)
        return _judged("not_executable", f"the quoted text is {_ROLES[hit.match.role]}", hit, view, shown)
    hit = min(running, key=lambda one: (one.distance > NEAR and not one.whole, not one.whole, one.distance))
    verdict, why = _placed(claim, hit)
    return _judged(verdict, why, hit, view, shown)


def _nearest(hits: list[Hit]) -> Hit | None:
    return min(hits, key=lambda one: one.distance) if hits else None


def _judged(verdict: ClaimVerdict, why: str, hit: Hit | None, view: View, shown: str) -> _Judged:
    return _Judged(verdict, why, hit, view, hit.quote.text if hit else shown)


def _placed(claim: Claim, hit: Hit) -> tuple[ClaimVerdict, str]:
    line = hit.match.first
    if claim.first is None:
        return "grounded", f"the quoted code stands at line {line}; the claim names no line"
    if hit.distance == 0:
        return "grounded", "the quoted code stands at the line said"
    if hit.distance <= NEAR:
        return "grounded", f"the quoted code stands {hit.distance} line{'s' * (hit.distance > 1)} off the line said"
    if hit.whole:
        return "grounded", f"the quoted lines match, {hit.distance} lines off the line said"
    return "moved", f"the quoted code stands {hit.distance} lines off the line said"


def _absent(claim: Claim, quoted: list[Quote], view: View, files: int) -> str:
    among = f" (nor in {files - 1} more files with this name)" if files > 1 else ""
    rows = [count for quote in quoted if (count := rows_standing(quote, view))[0]]
    if not quoted:
        why = "the claim quotes no code: a name alone is no evidence"
    elif rows:
        # Single lines that every file may hold do not make the excerpt true, and are not denied either.
        stand, of = max(rows)
        why = f"the quoted lines are not in the file as they are quoted: {stand} of {of} stand somewhere in it{among}"
    elif any(quote.weak and stands(quote, view) for quote in quoted):
        why = f"of what is quoted only a name is in the file, and not at the line said: that is no evidence{among}"
    else:
        pieces = "none of the quoted pieces is" if len(quoted) > 1 else "the quoted code is not"
        why = f"{pieces} in the file{among}"
    if claim.first is not None and claim.first > len(view.lines):
        why += f"; the file ends at line {len(view.lines)}"
    return why


def _checked(index: int, claim: Claim, judged: _Judged, newer: Tree | None, repeats: int | None) -> CheckedClaim:
    hit, view, why, fixed = judged.hit, judged.view, judged.why, None
    if newer is not None and hit is not None and view is not None:
        fixed, reason = compare(hit, view, newer)
        why += f"; {reason}"
    return CheckedClaim(
        index=index,
        path=claim.path,
        line=claim.first,
        end_line=claim.last,
        severity=claim.severity,
        title=claim.title,
        quote=judged.quote[:_LONGEST_QUOTE],
        verdict=judged.verdict,
        found=None if hit is None or view is None else Found(path=view.path, line=_line(hit, claim)),
        why=why,
        fixed=fixed,
        repeats=repeats,
    )


def _line(hit: Hit, claim: Claim) -> int:
    """Return the line where the quote stands: the one said, where an excerpt covers it."""
    if claim.first is not None and hit.match.first <= claim.first <= hit.match.last:
        return claim.first
    return hit.match.first
