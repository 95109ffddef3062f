"""The options of each verb; every setting of the configuration is one of `train`."""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import shtab

from rl_gumbel.cli.errors import UserError
from rl_gumbel.config import ALGOS, ConfigError, Setting, list_settings, read_value, suggest
from rl_gumbel.config.reading import Place

ENV_KWARGS = "--env-kwargs."
GROUPS = {
    "": ("run", None),
    "algorithm": ("algorithm", "arguments of {algo}, as under `algorithm:` in a file"),
    "policy_kwargs": ("networks", "those of {algo}, as under `policy_kwargs:` in a file"),
}
EPILOG = """\
VALUE is YAML: 1e-3, true, null, [64, 64], '{schedule: linear, start: 1, end: 0.1}'.
An option wins over the file of --config; without --config the tuned settings of
the environment are the start, where there are some (`rl-gumbel list configs`).
Another estimator than theirs starts at its own default temperature.
"""


class Suggestions(tuple[str, ...]):
    """Choices for tab completion only: the config refuses other words, with the nearest name."""

    def __contains__(self, word: object) -> bool:
        """Return True."""
        return True


class Override(argparse.Action):
    """Put the option's text, read as YAML, into `overrides` at the place of its setting."""

    def __init__(self, place: Place, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dest": "overrides", "default": argparse.SUPPRESS})
        self.place = place

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store one value."""
        namespace.overrides[self.place] = read_option(str(option_string), values)


def read_option(option: str, text: str) -> Any:
    """Return the value of an option's text; raise a `UserError` that names the option."""
    try:
        return read_value(text)
    except ConfigError as error:
        raise UserError(f"{option}: {error}") from error


def add_train(parser: argparse.ArgumentParser, algo: str, *, show_all: bool) -> None:
    """Add the options of `train`: those of the command, then every setting.

    A setting that `algo` does not have is an option too, so that the configuration can say whose
    it is; only `show_all` puts it into help and completion.
    """
    parser.description = "Train an agent; without arguments, GumbelSAC on CartPole-v1."
    others = "".join(
        f"Options of {other}: rl-gumbel train --algo {other} --help\n"
        for other in ALGOS
        if other != algo
    )
    parser.epilog = EPILOG + others
    parser.set_defaults(overrides={})
    command = parser.add_argument_group("command")
    config = command.add_argument("--config", metavar="FILE", help="YAML file of settings")
    config.complete = shtab.FILE  # type: ignore[attr-defined]
    command.add_argument(
        "--run-dir",
        metavar="DIR",
        help="directory of this run, new or empty (default: runs/ENV/ALGO/DATE-SEED)",
    ).complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    command.add_argument(
        "--resume",
        type=one_of(("auto",)),
        choices=("auto",),
        help="go on with the run in --run-dir if it has a checkpoint, else start it",
    )
    add_no_progress(command)
    groups = {
        section: parser.add_argument_group(title, description and description.format(algo=algo))
        for section, (title, description) in GROUPS.items()
    }
    own = {setting.place: setting for setting in list_settings(algo)}
    every = {setting.place: setting for other in ALGOS for setting in list_settings(other)}
    for place, setting in (own | every | own).items():
        group = groups[place[0] if len(place) > 1 else ""]
        add_setting(group, setting, is_shown=show_all or place in own)
    groups[""].add_argument(
        f"{ENV_KWARGS}NAME",
        metavar="VALUE",
        default=argparse.SUPPRESS,
        help="an argument of the environment, e.g. --env-kwargs.is-slippery false",
    )


def add_setting(group: argparse._ArgumentGroup, setting: Setting, *, is_shown: bool) -> None:
    """Add one setting as an option, its text read as YAML; its place is the `dest`."""
    option = "--" + ".".join(setting.place).replace("_", "-")
    text = setting.help.rstrip(".").replace("%", "%%")
    if setting.choices:
        text += f" ({', '.join(setting.choices)})"
    default = setting.default if isinstance(setting.default, str) else json.dumps(setting.default)
    group.add_argument(
        option,
        action=Override,
        place=setting.place,
        metavar="VALUE",
        choices=Suggestions(setting.choices) if setting.choices else None,
        help=f"{text} (default: {default})" if is_shown else argparse.SUPPRESS,
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument of what goes on from a run."""
    run = parser.add_argument("run", metavar="RUN", help="directory that train wrote")
    run.complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def add_no_progress(parser: argparse._ActionsContainer) -> None:
    """Add the option of whatever trains."""
    parser.add_argument("--no-progress", action="store_true", help="no progress display")


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Add the options of `resume`."""
    parser.description = "Go on with a run from its newest checkpoint that is whole."
    add_run(parser)
    parser.add_argument(
        "--total-timesteps",
        type=at_least(1),
        metavar="TOTAL",
        help="steps of the whole run, over which schedules stretch (default: the run's own)",
    )
    add_no_progress(parser)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate`."""
    parser.description = "Evaluate the agent of a run: argmax actions of the last model."
    add_run(parser)
    add = parser.add_argument
    add("--episodes", type=at_least(1), default=100, metavar="N", help="(default: 100)")
    add_agent(parser)
    add("--render", action="store_true", help="show the episodes in a window")
    add("--json", action="store_true", help="print one JSON object")


def add_agent(parser: argparse.ArgumentParser) -> None:
    """Add the options of all verbs that play episodes."""
    add = parser.add_argument
    models = ("last", "best")
    add("--model", type=one_of(models), choices=models, default="last", help="(default: last)")
    add("--stochastic", action="store_true", help="sample actions instead of the argmax")
    add("--seed", type=at_least(0), default=0, metavar="S", help="(default: 0)")
    add(
        "--max-episode-steps",
        type=at_least(1),
        metavar="N",
        help="end episodes here (default: the limit of the environment, or 10000)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:i (default: auto)")


EXPERIMENTS = (
    "temperature",
    "factors",
    "categories",
    "sharpness",
    "shapes",
    "cost",
    "polynomial",
)
"""Of `lab`, the names of `rl_gumbel.lab.EXPERIMENTS`."""


def add_lab(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lab`."""
    parser.description = (
        "Measure every estimator against exact gradients: bias, variance, cosine, cost.\n"
        "Writes a CSV and a figure for each experiment; with --run, for that run's own critic and\n"
        "states, and recommends an estimator for it."
    )
    add = parser.add_argument
    add(
        "--out",
        metavar="DIR",
        help="directory for the files, new or empty (default: lab, or RUN/lab)",
    ).complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    add(
        "--only",
        nargs="+",
        type=one_of(EXPERIMENTS),
        choices=EXPERIMENTS,
        metavar="NAME",
        help=f"some of the experiments: {', '.join(EXPERIMENTS)}",
    )
    add("--run", metavar="RUN", help="directory that train wrote with sac or reppo")
    models = ("last", "best")
    add("--model", type=one_of(models), choices=models, help="of --run (default: last)")
    add(
        "--states",
        type=at_least(1),
        metavar="N",
        help="of --run, sampled from episodes of its policy (default: 256)",
    )
    add(
        "--draws",
        type=at_least(1),
        metavar="N",
        help="gradients sampled for each number (default: 256; with --run 64)",
    )
    add("--seed", type=at_least(0), default=0, metavar="S", help="(default: 0)")


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    parser.description = (
        "Write the agent of a run as a zip that the load of its algorithm and SB3's tools read, "
        "with its optimisers."
    )
    add_run(parser)
    file = parser.add_argument("file", metavar="FILE.zip", help="a new file")
    file.complete = shtab.FILE  # type: ignore[attr-defined]
    models = ("last", "best")
    parser.add_argument(
        "--model",
        type=one_of(models),
        choices=models,
        default="last",
        help="best has no optimisers (default: last)",
    )


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Return a reader of one of `names`."""

    def read(text: str) -> str:
        if text not in names:
            known = ", ".join(names)
            raise argparse.ArgumentTypeError(
                f"must be one of {known}, got {text!r}{suggest(text, names)}"
            )
        return text

    return read


def at_least(low: int) -> Callable[[str], int]:
    """Return a reader of integers from `low` on."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {low}, got {text!r}")
        return int(text)

    return read
