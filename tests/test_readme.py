"""The README's Python blocks run, and the files and commands that it names are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_readme_has_its_blocks() -> None:
    """An unmatched pattern would leave the next test with nothing to run."""
    assert len(BLOCKS) == 6


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n", 1)[0])
def test_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the length of training is shortened."""
    monkeypatch.chdir(tmp_path)
    exec(re.sub(r"learn\([\d_]+\)", "learn(150)", block), {})


def test_linked_files_exist() -> None:
    """A link that leads nowhere is the first thing a visitor finds."""
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    links = re.findall(r"\]\((?!http)([^)#]+)\)", prose)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
