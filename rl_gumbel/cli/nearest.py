"""What may have been meant by a path that is no run."""

from pathlib import Path

from rl_gumbel.config.errors import find_nearest
from rl_gumbel.plots.read import CONFIG

DEPTH = 4
"""Directories below a path among which runs are looked for, as in runs/ENV/ALGO/DATE-SEED."""


def explain_no_run(path: Path) -> str:
    """Return why a path is no run, with the nearest run or name: the end of a message."""
    if not path.exists():
        return f"there is no such directory{suggest_path(path)}"
    around = next((up for up in path.parents if (up / CONFIG).is_file()), None)
    if around is not None:
        return f"it has no {CONFIG}; did you mean {around}?"
    found = [file for depth in range(DEPTH) for file in path.glob("*/" * (depth + 1) + CONFIG)]
    if not found:
        return f"it has no {CONFIG}"
    latest = max(found, key=lambda file: file.stat().st_mtime).parent
    runs = "one run" if len(found) == 1 else f"{len(found)} runs"
    return f"it has no {CONFIG}; {runs} below it: did you mean {latest}?"


def suggest_path(path: Path) -> str:
    """Return "; did you mean PATH?" with the nearest name of its first part that is missing."""
    there = next(up for up in path.parents if up.exists())
    if not there.is_dir():
        return ""
    name, *rest = path.relative_to(there).parts
    near = find_nearest(name, [entry.name for entry in there.iterdir() if entry.is_dir()])
    if near is None:
        return ""
    whole = there.joinpath(near, *rest)
    return f"; did you mean {whole if whole.exists() else there / near}?"
