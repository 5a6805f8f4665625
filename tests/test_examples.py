"""The examples run, and CONTRIBUTING shows the backend that is in the folder."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_contributing_shows_the_example_backend_and_it_has_thirty_lines_at_most():
    source = (ROOT / "examples" / "my_backend.py").read_text().rstrip()
    assert f"```python\n{source}\n```" in (ROOT / "CONTRIBUTING.md").read_text()
    assert sum(1 for line in source.splitlines() if line.strip()) <= 30


def test_a_backend_in_a_file_outside_the_project_is_verified_by_path(tmp_path):
    shutil.copy(ROOT / "examples" / "my_backend.py", tmp_path / "elsewhere.py")
    words = ["verify", "--backend", "elsewhere.py:MyBackend", "--probe", "values", "--format", "json", "--jobs", "1"]
    done = subprocess.run([sys.executable, "-m", "deltaproof", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    status = [
        check["status"] for check in report["checks"] if check["probe"] == "values" and check["form"] == "recurrent"
    ]
    assert status.count("pass") >= 4, status
    assert report["backend"]["name"] == "mine"


def test_the_code_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    for block in blocks:
        names: dict[str, object] = {}
        exec(compile(block, "README.md", "exec"), names)
        assert "o" in names


def test_links_of_the_handwritten_pages_resolve():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
