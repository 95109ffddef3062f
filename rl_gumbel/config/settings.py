"""Which settings there are: each with its place, help, default and choices."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from rl_gumbel.config.algos import ALGOS, DEFAULT_ALGO
from rl_gumbel.config.reading import Place


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


def list_settings(algo: str = DEFAULT_ALGO) -> Iterator[Setting]:
    """Yield every setting of a run of `algo`, those of its sections in their place."""
    for setting in _list_fields(ALGOS[algo], ()):
        if setting.place == ("algo",):  # its own configuration knows one word for it
            yield Setting(setting.place, setting.help, DEFAULT_ALGO, tuple(ALGOS))
        else:
            yield setting


def _list_fields(model: type[BaseModel], above: Place) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from _list_fields(section, (*above, name))
        elif section != dict[str, Any]:
            values = get_args(section)
            choices = values if values and all(isinstance(v, str) for v in values) else ()
            yield Setting((*above, name), field.description or "", field.default, choices)


def find_owners(place: Place) -> list[str]:
    """Return the algorithms that have a setting."""
    return [algo for algo in ALGOS if place in {s.place for s in list_settings(algo)}]


def find_names(algo: str, above: Place) -> set[str]:
    """Return the names that may stand below a place, inside each member of a union too."""
    models: list[type[BaseModel]] = [ALGOS[algo]]
    for key in above:
        fields = [model.model_fields[key] for model in models if key in model.model_fields]
        models = [model for field in fields for model in _find_models(field.annotation)]
    return {name for model in models for name in model.model_fields}


def _find_models(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that an annotation holds, those inside unions too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _find_models(part)]
