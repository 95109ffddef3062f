"""TensorBoard's event files, read without TensorFlow: scalars and histograms."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Points = dict[str, dict[int, Any]]
"""Tag to step to value; of a step that was written twice, after a resume, the last counts."""


def read_values(path: Path) -> Iterator[tuple[int, str, str, Any]]:
    """Yield step, plugin, tag and array of what a file, or the files of a directory, hold.

    A file that was cut off, or is being written, gives what is whole.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    files = sorted(path.glob("*tfevents*")) if path.is_dir() else [path]
    for file in files:
        plugins: dict[str, str] = {}  # a tag's plugin stands at its first value only
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                plugin = plugins.setdefault(value.tag, value.metadata.plugin_data.plugin_name)
                if value.HasField("tensor"):
                    yield event.step, plugin, value.tag, make_ndarray(value.tensor)


def read_scalars(path: Path) -> dict[str, tuple[Array, Array]]:
    """Return steps and values of every scalar.

    Raises:
        ValueError: for a file that holds no events.
    """
    points: Points = {}
    for step, plugin, tag, array in read_values(path):
        if plugin == "scalars":
            points.setdefault(tag, {})[step] = float(array)
    if not points and path.is_file():
        raise ValueError(f"{path} is neither a monitor.csv nor an event file with scalars")
    return {
        tag: (np.array(sorted(values), float), np.array([values[s] for s in sorted(values)]))
        for tag, values in points.items()
    }


def read_histograms(path: Path) -> dict[str, tuple[Array, Array]]:
    """Return steps `[P]` and `[P, bins, 3]`: left, right and count of each bin, by tag."""
    points: Points = {}
    for step, plugin, tag, array in read_values(path):
        if plugin == "histograms" and array.size:
            points.setdefault(tag, {})[step] = array
    result = {}
    for tag, values in points.items():
        widest = max(len(array) for array in values.values())
        steps = [step for step in sorted(values) if len(values[step]) == widest]
        result[tag] = np.array(steps, float), np.stack([values[step] for step in steps])
    return result
