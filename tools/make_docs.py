"""Write the generated pages of docs/ and their figures, or with --check name those that are stale."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from deltaproof.bench.page import render_performance, stale_figures, write_figures  # noqa: E402
from deltaproof.bench.schema import bench_schema_files  # noqa: E402
from deltaproof.reports.backends_page import render_backends  # noqa: E402
from deltaproof.reports.pages import render_pages  # noqa: E402
from deltaproof.reports.rule_text import render_rule_pages  # noqa: E402
from deltaproof.reports.schema import schema_files  # noqa: E402

SOURCES: tuple[Callable[[], Mapping[str, str]], ...] = (
    render_pages,
    schema_files,
    bench_schema_files,
    render_backends,
    render_performance,
    render_rule_pages,
)
"""Each returns pages by their path inside the docs folder."""

OWNED_FOLDERS = ("probes", "rules")
"""Folders of docs/ that hold generated pages alone: a page there without a source is stale."""


def wanted_pages() -> dict[str, str]:
    """Return the text of every generated page by its path inside the docs folder."""
    return {name: text for source in SOURCES for name, text in source().items()}


def stale_pages(docs: Path, wanted: Mapping[str, str]) -> list[str]:
    """Return the pages in ``docs`` that are missing, differ from ``wanted`` or have no source any more."""
    changed = [
        name
        for name, text in wanted.items()
        if not (docs / name).is_file() or (docs / name).read_text(encoding="utf-8") != text
    ]
    found = {path.relative_to(docs).as_posix() for folder in OWNED_FOLDERS for path in (docs / folder).glob("*.md")}
    return sorted(changed + [name for name in found if name not in wanted])


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and name the pages that are stale")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder to write to (default: docs)")
    options = parser.parse_args(arguments)

    wanted = wanted_pages()
    stale = stale_pages(options.docs, wanted)
    if options.check:
        stale += stale_figures(options.docs)
        for name in stale:
            print(f"stale: {name}; run python tools/make_docs.py", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        path = options.docs / name
        if name in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[name], encoding="utf-8")
            print(f"wrote {name}")
        else:
            path.unlink()
            print(f"removed {name}")
    for name in write_figures(options.docs):
        print(f"{'wrote' if (options.docs / name).is_file() else 'removed'} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
