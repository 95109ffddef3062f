"""A file and the command line, one over the other, to a checked configuration, and back to YAML."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rl_gumbel.config.errors import ConfigError, describe, suggest
from rl_gumbel.config.reading import Place, read_file
from rl_gumbel.config.schema import TAGS, TrainConfig, ignored_settings

CONFIGS = Path(__file__).parent.parent / "configs"
"""The tuned settings that come with the package: `<algo>/<env>.yaml`."""


@dataclass(frozen=True)
class Setting:
    """One setting, as the command line needs it."""

    place: Place
    """Keys down to it."""
    help: str
    """What it does, in a sentence."""
    default: Any
    """Its default value."""
    choices: tuple[str, ...]
    """The names it accepts, where it accepts only names."""


def list_settings(model: type[BaseModel] = TrainConfig, above: Place = ()) -> Iterator[Setting]:
    """Yield every setting of `model`, those of its sections in their place."""
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from list_settings(section, (*above, name))
        elif section != dict[str, Any]:
            values = get_args(section)
            choices = values if values and all(isinstance(v, str) for v in values) else ()
            yield Setting((*above, name), field.description or "", field.default, choices)


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
    of another estimator; any other setting that would be ignored is an error.

    Raises:
        ConfigError: naming file and line, or the option, and the nearest known name.
    """
    values, lines = read_file(path) if path else ({}, {})
    overrides = overrides or {}
    _drop_temperature(values, overrides)
    for place, value in overrides.items():
        _set(values, place, value)
    origin = _Origin(path, lines, overrides)
    config = _validate(values, origin)
    ignored = list(_given_but_ignored(config, values))
    for field, cause, reason in ignored:
        place = tuple(field.split("."))
        if place in overrides or tuple(cause.split(".")) not in overrides:
            raise ConfigError(f"{origin.label(place)}would be ignored: {reason}")
        _remove(values, place)
    return _validate(values, origin) if ignored else config


def dump_config(config: TrainConfig) -> str:
    """Return the configuration as YAML, without the settings that have no effect."""
    values = config.model_dump(mode="json")
    for field, _, _ in ignored_settings(config):
        _remove(values, tuple(field.split(".")))
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


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


def _validate(values: Mapping[str, Any], origin: _Origin) -> TrainConfig:
    try:
        return TrainConfig.model_validate(deepcopy(values))
    except ValidationError as error:
        # Unknown names first: a misspelt name explains most other errors.
        first = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
    place = tuple(str(part) for part in first["loc"] if part not in (*TAGS, "[key]"))
    if first["type"] == "refused":
        place = (*place, *first["ctx"]["field"].split("."))
    if first["type"] == "extra_forbidden":
        raise ConfigError(f"{origin.label(place)}unknown key{_nearest(place)}")
    raise ConfigError(origin.label(place) + describe(first))


def _nearest(place: Place) -> str:
    """Return the suggestion for an unknown key: one beside it, else the same name elsewhere."""
    models: list[type[BaseModel]] = [TrainConfig]
    for key in place[:-1]:
        fields = (model.model_fields[key] for model in models if key in model.model_fields)
        models = [model for field in fields for model in _find_models(field.annotation)]
    beside = {name for model in models for name in model.model_fields}
    elsewhere = [".".join(s.place) for s in list_settings() if s.place[-1] == place[-1]]
    return suggest(place[-1], beside) or (f"; did you mean {elsewhere[0]}?" if elsewhere else "")


def _find_models(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that an annotation holds, those inside unions too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _find_models(part)]


def _given_but_ignored(
    config: TrainConfig, values: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Yield what `ignored_settings` names and `values` sets (null does not set anything)."""
    for field, cause, reason in ignored_settings(config):
        value: Any = values
        for key in field.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and value != {}:
            yield field, cause, reason


def _drop_temperature(values: Mapping[str, Any], overrides: Mapping[Place, Any]) -> None:
    """Remove the file's temperature if `overrides` choose an estimator that it was not set for."""
    section = values.get("algorithm")
    chosen = overrides.get(("algorithm", "estimator"))
    if chosen is None or not isinstance(section, dict):
        return
    if section.get("estimator", TrainConfig().algorithm.estimator) != chosen:
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
