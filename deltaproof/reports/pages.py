"""The pages that are written from data: the contract, the hazard catalogue and one page a probe."""

from __future__ import annotations

import ast
import re
from inspect import cleandoc
from pathlib import Path

from deltaproof.contracts.clauses import CHAPTERS, CLAUSES, CONTRACT_VERSION, Clause
from deltaproof.hazards import FAMILIES, HAZARDS, SEVERITIES, Hazard

PROBES_FOLDER = Path(__file__).resolve().parents[1] / "verify" / "probes"
COMMAND = "python tools/make_docs.py"

_CODE = re.compile(r"(```.*?```|`[^`]*`)", re.DOTALL)
_CLAUSE_CODE = re.compile(rf"\b({'|'.join(CLAUSES)})\b")


class Plain:
    """Names of clauses, hazards and probes as they are, for a terminal or a pipe."""

    def clause(self, code: str) -> str:
        return code

    def hazard(self, entry: Hazard) -> str:
        return f"`{entry.name}` ({entry.code})"

    def probe(self, name: str) -> str:
        return f"`{name}`"

    def prose(self, text: str) -> str:
        """Return ``text`` with the names in it made links where there are links."""
        return text


class Linked(Plain):
    """Names as links between the pages in ``docs/``.

    Args:
        page: file name of the page that is written, so that links inside it stay inside it.
        probes: probes that have a page of their own.
    """

    def __init__(self, page: str, probes: frozenset[str]) -> None:
        self.page = page
        self.probes = probes

    def _to(self, page: str, anchor: str) -> str:
        return f"{'' if page == self.page else page}#{anchor}"

    def clause(self, code: str) -> str:
        return f"[{code}]({self._to('contract.md', code.lower())})"

    def hazard(self, entry: Hazard) -> str:
        return f"[`{entry.name}`]({self._to('hazards.md', entry.name)})"

    def probe(self, name: str) -> str:
        return f"[`{name}`](probes/{name}.md)" if name in self.probes else f"`{name}`"

    def prose(self, text: str) -> str:
        parts = _CODE.split(text)
        parts[::2] = [_CLAUSE_CODE.sub(lambda found: self.clause(found[1]), part) for part in parts[::2]]
        return "".join(parts)


def clause_body(entry: Clause, names: Plain) -> str:
    """Return the Markdown of one clause below its heading."""
    parts = [f"**{entry.title}**", names.prose(entry.text)]
    if entry.example is not None:
        parts.append(f"Example. {names.prose(entry.example)}")
    parts.append(f"Forms: {', '.join(entry.forms)}.")
    broken_by = [names.hazard(hazard) for hazard in HAZARDS.values() if entry.code in hazard.clauses]
    if broken_by:
        parts.append(f"Broken by: {', '.join(broken_by)}.")
    return "\n\n".join(parts)


def hazard_body(entry: Hazard, names: Plain) -> str:
    """Return the Markdown of one hazard below its heading."""
    parts = [
        f"{entry.code}, severity {entry.severity}. **{entry.what}**",
        f"How it breaks. {names.prose(entry.why)}",
        f"How to write it right. {names.prose(entry.avoid)}",
    ]
    clauses = ", ".join(f"{names.clause(code)} {CLAUSES[code].name}" for code in entry.clauses)
    probes = ", ".join(names.probe(probe) for probe in entry.probes)
    parts.append(
        f"- Breaks: {clauses or f'no clause of contract version {CONTRACT_VERSION}'}.\n"
        f"- Shown by: {probes or 'no probe'}.\n"
        f"- Labelled public bugs: {'not counted' if entry.rows is None else entry.rows}."
    )
    seen = [
        f"- {f'[{label}]({story.url})' if story.url else label}: {story.text}"
        for story in entry.stories
        for label in (f"{story.repo} {story.reference}",)
    ]
    if entry.also_seen:
        seen.append(f"- Also seen in: {', '.join(entry.also_seen)}.")
    if seen:
        parts.append("Seen in public:\n\n" + "\n".join(seen))
    return "\n\n".join(parts)


def probe_texts(folder: Path = PROBES_FOLDER) -> dict[str, tuple[str, str]]:
    """Return title and body of every probe's page by the probe's name.

    The pages are the docstrings of ``folder/<name>.py``; the modules are parsed, not imported.

    Raises:
        ValueError: a probe module has no docstring.
    """
    found = {}
    for path in sorted(folder.glob("*.py")):
        if path.name.startswith("_"):
            continue
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if not text:
            raise ValueError(f"{path.name}: a probe module needs a docstring, it is the probe's page")
        title, _, body = text.partition("\n")
        found[path.stem] = (title.strip().rstrip("."), cleandoc(body))
    return found


def _generated(source: str) -> str:
    return f"*Generated from {source} by `{COMMAND}`; edit it there.*"


def render_contract() -> str:
    """Return ``docs/contract.md``."""
    names = Linked("contract.md", frozenset(probe_texts()))
    parts = [
        _generated("`deltaproof/contracts/clauses/`"),
        "# The contract",
        f"Contract version {CONTRACT_VERSION} of the delta-rule operators: what every backend promises, one numbered "
        "clause a promise. `deltaproof explain P1` prints one of them.",
        "Shapes: B batch, T tokens, N sequences or rows, H query and key heads, HV value heads, K and V the sizes of a "
        "key and of a value. A form is a way to compute the operator: `chunk` and `recurrent` take whole sequences; "
        "`decode` and `prefill` work against a pool of states, one slot a sequence. [Hazards](hazards.md) are the "
        "known ways to break these promises.",
        "\n".join(
            ["| clause | name | promise |", "| --- | --- | --- |"]
            + [f"| {names.clause(entry.code)} | {entry.name} | {entry.title} |" for entry in CLAUSES.values()]
        ),
    ]
    for chapter, clauses in CHAPTERS.items():
        parts.append(f"## {chapter}")
        for entry in clauses:
            parts.append(f'<a id="{entry.code.lower()}"></a>\n\n### {entry.code} {entry.name}')
            parts.append(clause_body(entry, names))
    return "\n\n".join(parts) + "\n"


def render_hazards() -> str:
    """Return ``docs/hazards.md``."""
    names = Linked("hazards.md", frozenset(probe_texts()))
    parts = [
        _generated("`deltaproof/hazards/`"),
        "# Hazards",
        "The ways in which kernels break [the contract](contract.md). Each has a name and a code, and tells which "
        "clauses it breaks, which probes of `deltaproof verify` make it happen, how to write it right, and which "
        "public bugs taught it. `deltaproof explain padding-slot-address` prints one of them.",
        "Severities:\n\n" + "\n".join(f"- {name}: {meaning}." for name, meaning in SEVERITIES.items()),
        "The last column counts the public bugs of that kind that were read and labelled, fixed or standing. They were "
        "read against the change that fixed them, not run again.",
        "\n".join(
            ["| hazard | code | severity | probes | bugs |", "| --- | --- | --- | --- | --- |"]
            + [
                f"| {names.hazard(entry)} | {entry.code} | {entry.severity} "
                f"| {', '.join(names.probe(probe) for probe in entry.probes) or '-'} "
                f"| {'-' if entry.rows is None else entry.rows} |"
                for entry in HAZARDS.values()
            ]
        ),
    ]
    for family, hazards in FAMILIES.items():
        parts.append(f"## {family}")
        for entry in hazards:
            parts.append(f'<a id="{entry.name}"></a>\n\n### {entry.name}')
            parts.append(hazard_body(entry, names))
    return "\n\n".join(parts) + "\n"


def render_probe_pages(folder: Path = PROBES_FOLDER) -> dict[str, str]:
    """Return the page of every probe in ``folder``, by the probe's name."""
    return {
        name: f"{_generated(f'`deltaproof/verify/probes/{name}.py`')}\n\n# {title}\n\n{body}\n"
        for name, (title, body) in probe_texts(folder).items()
    }


def render_pages() -> dict[str, str]:
    """Return every generated page by its path inside ``docs/``."""
    return {
        "contract.md": render_contract(),
        "hazards.md": render_hazards(),
        **{f"probes/{name}.md": text for name, text in render_probe_pages().items()},
    }
