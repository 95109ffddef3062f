"""Gradient estimators measured against gradients that are known exactly; drawn by `figures`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rl_gumbel.lab import polynomial, sweep

Experiment = Callable[[int, int], Iterator[dict[str, Any]]]

EXPERIMENTS: Mapping[str, Experiment] = {
    "temperature": sweep.temperature,
    "factors": sweep.factors,
    "categories": sweep.categories,
    "sharpness": sweep.sharpness,
    "shapes": sweep.shapes,
    "cost": sweep.cost,
    "polynomial": polynomial.polynomial,
}
"""`(draws, seed)` to rows, by name; `figures` has a function of the same name for each."""
