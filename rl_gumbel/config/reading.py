"""A YAML file as values, and the line on which each of them stands; how values are written."""

import re
from pathlib import Path
from typing import Any

import yaml

from rl_gumbel.config.errors import ConfigError

Place = tuple[str, ...]
"""Keys from the top of the file down to a value."""


class Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: `1e-3` is a float, `no` and `12:30` are text."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 (PyYAML's own attribute)


_SCALARS = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    ("merge", r"^<<$", ["<"]),
)


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which either version of YAML would read as something else."""


for _name, _pattern, _first in _SCALARS:
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), _first)


def read_value(text: str) -> Any:
    """Return the value of a piece of YAML, as on the command line.

    Raises:
        ConfigError: if it is not YAML.
    """
    try:
        return yaml.load(text, Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"not a YAML value: {text!r}") from error


def read_file(path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    """Return the settings of a file, and the line of each.

    Raises:
        ConfigError: if the file cannot be read, is not YAML, is not a mapping or repeats a key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{path}: cannot read the configuration: {reason}") from error
    try:
        loader = Loader(text)
    except yaml.YAMLError as error:  # a character that YAML does not have
        raise ConfigError(f"{path}: not YAML: {str(error).splitlines()[0]}") from error
    lines: dict[Place, int] = {}
    try:
        node = loader.get_single_node()
        if node is not None:
            _find_lines(node, (), lines, path)
        values = {} if node is None else loader.construct_document(node)
    except ConfigError:
        raise  # a repeated key
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {str(error).splitlines()[0]}") from error
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of settings (name: value)")
    return values, lines


def _find_lines(node: yaml.Node, place: Place, lines: dict[Place, int], path: Path) -> None:
    """Fill `lines` with the line of everything below `node`; raise on a repeated key."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*place, str(index))] = item.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        line, below = key.start_mark.line + 1, (*place, str(key.value))
        if below in lines:
            name = ".".join(below)
            raise ConfigError(f"{path}:{line}: {name}: given twice (first on line {lines[below]})")
        lines[below] = line
        _find_lines(value, below, lines, path)
