"""Every mutant of every kernel, in the order of the text; ids do not depend on line numbers."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from deltaproof.verify.source_mutants.operators import OPERATORS
from deltaproof.verify.source_mutants.source import Edit, Kernel, Source, sources


@dataclass(frozen=True)
class SourceMutant:
    """One slip in one kernel.

    Attributes:
        id: "FILE:FUNCTION:OPERATOR:ORDINAL", FILE below the operators' folder and without its ending.
        module: dotted name of the module it is in.
        function: the kernel or helper it is in.
        operator: name of the operator that made it.
        hazard: name of the hazard it mirrors, or None.
        line: line in the file, from 1.
        before, after: what stood there and what stands there now, on one line.
        edit: the change of the text.
        statement: the statement it is in, on one line; of a loop or condition its head alone.
    """

    id: str
    module: str
    function: str
    operator: str
    hazard: str | None
    line: int
    before: str
    after: str
    edit: Edit
    statement: str

    @property
    def place(self) -> str:
        """Return "FILE:FUNCTION", as ids begin."""
        return ":".join(self.id.split(":")[:2])


def one_line(text: str) -> str:
    """Return a text with all white space as single spaces, without comments."""
    joined = " ".join(line.partition("  # ")[0].strip() for line in text.splitlines())
    return joined.replace("( ", "(").replace(" )", ")").replace(",)", ")")


def _bare(text: str) -> str:
    """Return a text without white space and parentheses."""
    return "".join(letter for letter in text if letter not in "() \n\t")


def shown(text: str) -> str:
    """Return a text on one line, without parentheses around the whole of it."""
    line = one_line(text)
    if line.startswith("(") and line.endswith(")"):
        try:
            if ast.dump(ast.parse(line[1:-1])) == ast.dump(ast.parse(line)):
                return line[1:-1]
        except SyntaxError:
            pass
    return line


def statement_of(source: Source, kernel: Kernel, edit: Edit) -> str:
    """Return the text of the innermost statement around an edit; of one with a body what stands before the body."""
    spans = [source.span(node) for node in ast.walk(kernel.node) if isinstance(node, ast.stmt)]
    start, end = max(span for span in spans if span[0] <= edit.start and edit.end <= span[1])
    inner = [first for first, last in spans if start < first and last <= end]
    return source.text.encode()[start : min(inner, default=end)].decode()


def mutants_of(source: Source) -> Iterator[SourceMutant]:
    """Yield the mutants of one file; two operators that make the same text make one mutant."""
    for kernel in source.kernels():
        seen: set[str] = set()
        found: list[SourceMutant] = []
        for operator in OPERATORS:
            edits = sorted(operator.places(source, kernel), key=lambda edit: (edit.start, edit.end, edit.after))
            ordinal = 0
            for edit in edits:
                text = source.apply(edit)
                if text in seen or _bare(edit.before) == _bare(edit.after):
                    continue
                seen.add(text)
                ordinal += 1
                name = f"{source.stem}:{kernel.name}:{operator.name}:{ordinal}"
                hazard = _hazard(operator.hazard, edit)
                before, after = shown(edit.before), shown(edit.after)
                statement = one_line(statement_of(source, kernel, edit)).strip()
                found.append(
                    SourceMutant(
                        name, source.module, kernel.name, operator.name, hazard, edit.line, before, after, edit,
                        statement,
                    )
                )  # fmt: skip
        yield from sorted(found, key=lambda item: item.edit.start)


def _hazard(hazard: str | None, edit: Edit) -> str | None:
    """Return the hazard a mutant mirrors: a bound on a slot that is gone or shifted has one of its own."""
    guards = hazard == "unmasked-load" and "slot" in edit.before and "slot" in edit.before.replace(edit.after, "")
    return "padding-slot-address" if guards else hazard


def generate(chosen: Mapping[str, Source] | None = None) -> list[SourceMutant]:
    """Return every mutant of these files, of all kernel files by default."""
    files: Iterable[Source] = (sources() if chosen is None else chosen).values()
    return [mutant for source in files for mutant in mutants_of(source)]
