"""A file and the command line, one over the other, to a checked configuration, and back to YAML."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rl_gumbel.config.algos import ALGOS, DEFAULT_ALGO
from rl_gumbel.config.errors import ConfigError, describe, show, suggest
from rl_gumbel.config.reading import Dumper, Place, read_file
from rl_gumbel.config.schema import TAGS, Ignored, TrainConfig
from rl_gumbel.config.settings import find_names, find_owners, list_settings

CONFIGS = Path(__file__).parent.parent / "configs"
"""The tuned settings that come with the package: `<algo>/<env>.yaml`."""
ALGO: Place = ("algo",)


def find_tuned(algo: str, env: str) -> Path | None:
    """Return the file of tuned settings for an algorithm on an environment, if there is one.

    `package:` in front of the id and our own namespace do not count: `rl_gumbel/X-v0` is `X-v0`.
    """
    name = env.rpartition(":")[2].removeprefix("rl_gumbel/").replace("/", "-")
    path = CONFIGS / algo / f"{name}.yaml"
    return path if path.is_file() else None


def load_config(
    path: Path | None = None, overrides: Mapping[Place, Any] | None = None
) -> TrainConfig:
    """Return the settings of a file (none: the defaults) with `overrides` on top.

    A setting of the file that an override makes meaningless is dropped, and so is the temperature
    of another estimator; any other setting that would be ignored is an error. So is an override of
    the file's `algo`, since the file holds the settings of that algorithm.

    Raises:
        ConfigError: naming file and line, or the option, and the nearest known name.
    """
    values, lines = read_file(path) if path else ({}, {})
    overrides = overrides or {}
    origin = _Origin(path, lines, overrides)
    algo = _choose_algo(values, origin)
    _drop_temperature(algo, values, overrides)
    for place, value in overrides.items():
        _set(values, place, value)
    config = _validate(algo, values, origin)
    ignored = list(_given_but_ignored(config, values))
    for field, cause, reason in ignored:
        place = tuple(field.split("."))
        if place in overrides or tuple(cause.split(".")) not in overrides:
            raise ConfigError(f"{origin.label(place)}would be ignored: {reason}")
        _remove(values, place)
    return _validate(algo, values, origin) if ignored else config


def dump_config(config: TrainConfig) -> str:
    """Return the configuration as YAML, without the settings that have no effect."""
    values = config.model_dump(mode="json")
    for field, _, _ in config.ignored():
        _remove(values, tuple(field.split(".")))
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, default_flow_style=None)


@dataclass(frozen=True)
class _Origin:
    """Where each value came from."""

    path: Path | None
    lines: Mapping[Place, int]
    overrides: Mapping[Place, Any]

    def label(self, place: Place) -> str:
        """Return "file:line: name: ", or "--option: " for what the command line gave."""
        name = ".".join(place)
        upwards = [place[:depth] for depth in range(len(place), 0, -1)]
        # First, since the lines below an option's place are those of what it replaced.
        if any(above in self.overrides for above in upwards):
            return f"--{name.replace('_', '-')}: "
        for above in upwards:
            if above in self.lines:
                return f"{self.path}:{self.lines[above]}: {name}: "
        return f"{self.path}: {name}: " if self.path else f"{name}: "


def _choose_algo(values: Mapping[str, Any], origin: _Origin) -> str:
    """Return the algorithm that the options name, else the file."""
    written = values.get("algo", DEFAULT_ALGO)
    algo = origin.overrides.get(ALGO, written)
    if not isinstance(algo, str) or algo not in ALGOS:
        known = ", ".join(ALGOS)
        hint = suggest(str(algo), ALGOS)
        raise ConfigError(f"{origin.label(ALGO)}must be one of {known}, got {show(algo)}{hint}")
    if "algo" in values and algo != written:
        raise ConfigError(
            f"{origin.label(ALGO)}{algo} cannot use the settings of {show(written)} "
            f"({origin.path}:{origin.lines[ALGO]})"
        )
    return algo


def _validate(algo: str, values: Mapping[str, Any], origin: _Origin) -> TrainConfig:
    try:
        return ALGOS[algo].model_validate(deepcopy({**values, "algo": algo}))
    except ValidationError as error:
        # Unknown names first: a misspelt name explains most other errors.
        first = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
    place = tuple(str(part) for part in first["loc"] if part not in (*TAGS, "[key]"))
    if first["type"] == "refused":
        place = (*place, *first["ctx"]["field"].split("."))
    if first["type"] == "extra_forbidden":
        raise ConfigError(origin.label(place) + _describe_unknown(algo, place))
    raise ConfigError(origin.label(place) + describe(first))


def _describe_unknown(algo: str, place: Place) -> str:
    """Return what an unknown key may be: that of another algorithm, or a known one misspelt."""
    owners = find_owners(place)
    if owners:
        return f"not a setting of {algo} but of {' and '.join(owners)}"
    nearest = suggest(place[-1], find_names(algo, place[:-1]))
    elsewhere = [".".join(s.place) for s in list_settings(algo) if s.place[-1] == place[-1]]
    if not nearest and elsewhere:
        nearest = f"; did you mean {elsewhere[0]}?"
    return f"unknown key{nearest}"


def _given_but_ignored(config: TrainConfig, values: Mapping[str, Any]) -> Iterator[Ignored]:
    """Yield what the configuration ignores and `values` sets (null does not set anything)."""
    for ignored in config.ignored():
        value: Any = values
        for key in ignored.field.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and value != {}:
            yield ignored


def _drop_temperature(algo: str, values: Mapping[str, Any], overrides: Mapping[Place, Any]) -> None:
    """Remove the file's temperature if `overrides` choose an estimator that it was not set for."""
    section = values.get("algorithm")
    chosen = overrides.get(("algorithm", "estimator"))
    if chosen is None or not isinstance(section, dict):
        return
    default = getattr(ALGOS[algo].model_fields["algorithm"].default, "estimator", None)
    if section.get("estimator", default) != chosen:
        section.pop("temperature", None)


def _set(values: dict[str, Any], place: Place, value: Any) -> None:
    for key in place[:-1]:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    values[place[-1]] = value


def _remove(values: dict[str, Any], place: Place) -> None:
    for key in place[:-1]:
        values = values.get(key) or {}
    values.pop(place[-1], None)
