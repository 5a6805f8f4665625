"""What the auditor's rules say of themselves: their docstrings, read from the source, as pages and as help."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path

from deltaproof.hazards import HAZARDS, Hazard, Severity

_AUDIT = Path(__file__).resolve().parents[1] / "audit"
RULE_FOLDERS = (_AUDIT / "own_rules", _AUDIT / "rules")
HEADINGS = ("What it does", "Why it matters", "Example", "Do this instead", "Seen in", "Known limits")
_HEADING = re.compile(rf"^(?:#+ *)?({'|'.join(HEADINGS)}):?$")


@dataclass(frozen=True)
class RuleText:
    """One rule's words.

    Attributes:
        code, name: of its hazard, or its own.
        stable: whether it runs without ``--preview``.
        title: the docstring's first sentence; what the hazard is where that is only the name.
        body: the rest as Markdown, its headings of the second level.
        headings: the headings in it, in order.
        hazard: the hazard it looks for, if the catalogue has it.
        source: the file, from the package's folder on.
        severity: the hazard's, or the rule's own.
    """

    code: str
    name: str
    stable: bool
    title: str
    body: str
    headings: tuple[str, ...]
    hazard: Hazard | None
    source: str
    severity: Severity = "medium"


def rule_texts(folders: Sequence[Path] = RULE_FOLDERS) -> dict[str, RuleText]:
    """Return the text of every rule by its name, in the order of the codes.

    Raises:
        ValueError: a rule's file has no docstring, or no class that says ``code`` and ``name``.
    """
    found: list[RuleText] = []
    for folder in folders:
        for path in sorted(folder.glob("*.py")):
            if path.name.startswith("_") or path.name == "own_rule.py":
                continue
            found.append(_read(path))
    return {text.name: text for text in sorted(found, key=lambda text: (text.code, text.name))}


@cache
def _read(path: Path) -> RuleText:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    doc = ast.get_docstring(tree)
    if not doc:
        raise ValueError(f"{path.name}: a rule needs a docstring, it is the rule's page")
    own_rule = path.parent.name == "own_rules"
    values: dict[str, object] = {"stable": own_rule, "severity": "low" if own_rule else "medium"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            own = dict(_constants(node))
            if own.get("code") and own.get("name"):
                values |= own
                break
    else:
        raise ValueError(f"{path.name}: a rule's class says code and name as plain strings")
    title, _, rest = doc.partition("\n")
    body, headings = _markdown(cleandoc(rest))
    code, name = str(values["code"]), str(values["name"])
    hazard = next((entry for entry in HAZARDS.values() if entry.code == code or entry.name == name), None)
    title = title.strip()
    if title.rstrip(".") == name and hazard is not None:
        title = hazard.what
    source = path.relative_to(_AUDIT.parent).as_posix() if _AUDIT in path.parents else path.name
    severity: Severity = hazard.severity if hazard is not None else values["severity"]  # type: ignore[assignment]
    return RuleText(code, name, bool(values["stable"]), title, body, headings, hazard, source, severity)


def _constants(node: ast.ClassDef) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        value = getattr(statement, "value", None)
        if isinstance(value, ast.Constant):
            found += [(target.id, value.value) for target in targets if isinstance(target, ast.Name)]
    return found


def _markdown(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a docstring's body as Markdown, whether its sections are indented or not, and its headings."""
    headings: list[str] = []
    sections: list[list[str]] = [[]]
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        found = None if fenced else _HEADING.match(line)
        if found is None:
            sections[-1].append(line)
        else:
            headings.append(found[1])
            sections.append([])
    # An extra first line keeps cleandoc from treating the section's own first line apart.
    bodies = [cleandoc("\n" + "\n".join(lines)).strip() for lines in sections]
    parts = [bodies[0]] if bodies[0] else []
    for heading, body in zip(headings, bodies[1:], strict=True):
        parts += [f"## {heading}", *([body] if body else [])]
    return "\n\n".join(parts), tuple(headings)


def rule_page(text: RuleText) -> str:
    """Return the Markdown of a rule below its title: what it is, then its sections."""
    facts = [f"**{text.title}** {text.code}, {'stable' if text.stable else 'in preview'}."]
    if text.hazard is not None:
        clauses = ", ".join(f"[{code}](../contract.md#{code.lower()})" for code in text.hazard.clauses)
        facts.append(f"Hazard: [`{text.hazard.name}`](../hazards.md#{text.hazard.name}), {text.hazard.severity}.")
        if clauses:
            facts.append(f"Breaks: {clauses}.")
    return f"{' '.join(facts)}\n\n{text.body}"


def render_rule_pages() -> dict[str, str]:
    """Return the page of every rule by its path inside the docs folder, and their list."""
    texts = rule_texts()
    pages = {
        f"rules/{text.name}.md": (
            f"*Generated from `deltaproof/{text.source}` by `python tools/make_docs.py`; edit it there.*\n\n"
            f"# {text.name}\n\n{rule_page(text)}\n"
        )
        for text in texts.values()
    }
    rows = [
        f"| [`{text.name}`]({text.name}.md) | {text.code} | {'stable' if text.stable else 'preview'} | {text.title} |"
        for text in texts.values()
    ]
    pages["rules/README.md"] = "\n".join(
        [
            "*Generated from `deltaproof/audit/rules/` by `python tools/make_docs.py`; edit it there.*",
            "",
            "# Rules of the audit",
            "",
            "What [`deltaproof audit`](../audit.md) looks for. A rule in preview runs with `--preview` only: its",
            "precision is not measured yet, or below 80 %.",
            "",
            "| rule | code | state | what it finds |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )
    return pages
