"""The site builds without a warning; every Python block of it and both notebooks run."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text())]
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def test_pages_with_code_are_found() -> None:
    """An unmatched pattern would leave the next test with nothing to run."""
    names = {page.stem for page in WITH_CODE}
    assert names >= {"sb3", "factored-actions", "differentiable-simulators", "batched-environment"}


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_blocks_of_a_page_run_one_after_another(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in BLOCK.findall(page.read_text()):
        exec(block, namespace)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path) -> None:
    """Only the length of training is shortened."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = re.sub(r"STEPS = [\d_]+", "STEPS = 13_000", cell.source)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_shows_what_it_printed(path: Path) -> None:
    """The site shows the outputs, so they are committed, and none is an error."""
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert [output for output in outputs if output.output_type == "error"] == []


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    built = subprocess.run([*command, DOCS, tmp_path], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "GumbelSAC" in (tmp_path / "api" / "algorithms.html").read_text()
    assert "estimator/cosine" in (tmp_path / "logged.html").read_text()
