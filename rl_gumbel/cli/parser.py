"""The words of the command line: verbs, options, help. Every setting of the config is an option."""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import shtab

from rl_gumbel import __version__
from rl_gumbel.cli.errors import UserError
from rl_gumbel.config import (
    ALGOS,
    ConfigError,
    Setting,
    list_settings,
    load_config,
    read_value,
    suggest,
)
from rl_gumbel.config.reading import Place

ENV_KWARGS, COMPLETION = "--env-kwargs.", "--print-completion"
LISTS = ("envs", "algos", "estimators", "configs")
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


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviations whose errors are one line with a suggestion."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            **kwargs,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
                prog, max_help_position=34, width=100
            ),
        )

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError`."""
        raise UserError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")

    def parse_all(self, words: Sequence[str], known: Sequence[str]) -> argparse.Namespace:
        """Return the parsed words; an unknown one is a `UserError` with the nearest of `known`."""
        args, rest = self.parse_known_args(words)
        if rest:
            word = rest[0].partition("=")[0]
            hint = (
                suggest_option(word, known) if word.startswith("-") else "; options start with --"
            )
            raise UserError(f"unknown argument {word}{hint}")
        return args


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


def suggest_option(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean --x?", also for a setting given without its section, or nothing."""
    leaves = {option.rpartition(".")[2].lstrip("-"): option for option in known}
    if (name := word.lstrip("-")) in leaves:
        return f"; did you mean {leaves[name]}?"
    return suggest(word, known)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line, with `overrides` (place to value) for `train`.

    Raises:
        UserError: for what cannot be understood.
    """
    completes = any(word.startswith(COMPLETION) for word in words)
    parser, verbs = make_parsers(find_algo(words), show_all=completes)
    if not words:
        parser.print_help()
        raise SystemExit(0)
    if not words[0].startswith("-") and words[0] not in verbs:
        raise UserError(
            f"unknown command {words[0]}{suggest(words[0], verbs)} (commands: {', '.join(verbs)})"
        )
    env_kwargs: dict[Place, Any] = {}
    if words[0] == "train":
        words, env_kwargs = split_env_kwargs(words)
    verb = verbs.get(words[0], parser)
    known = [option for action in verb._actions for option in action.option_strings]
    args = parser.parse_all(words, known)
    if words[0] == "train":
        args.overrides.update(env_kwargs)
    return args


def find_algo(words: Sequence[str]) -> str:
    """Return the algorithm that `--algo` names, for the help; the default without it.

    Raises:
        ConfigError: if there is no such algorithm.
    """
    parser = Parser(prog="rl-gumbel", add_help=False)
    parser.add_argument("--algo", nargs="?")
    algo = parser.parse_known_args(words)[0].algo
    return load_config(None, {("algo",): algo} if algo else {}).algo


def split_env_kwargs(words: Sequence[str]) -> tuple[list[str], dict[Place, Any]]:
    """Return the words without `--env-kwargs.NAME VALUE`, and those as overrides.

    Their names are the environment's, so no option can be declared for them.
    """
    rest: list[str] = []
    overrides: dict[Place, Any] = {}
    remaining = iter(words)
    for word in remaining:
        if not word.startswith(ENV_KWARGS):
            rest.append(word)
            continue
        option, separator, text = word.partition("=")
        text = text if separator else next(remaining, "")
        name = option.removeprefix(ENV_KWARGS).replace("-", "_")
        if not name or not text:
            raise UserError(f"{option}: expected --env-kwargs.NAME VALUE")
        overrides["env_kwargs", name] = read_option(option, text)
    return rest, overrides


def make_parsers(algo: str, *, show_all: bool) -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of the whole command line and that of each verb.

    Args:
        algo: whose settings the help of `train` shows.
        show_all: show those of all others too.
    """
    parser = Parser(
        prog="rl-gumbel",
        description="Reinforcement learning with gradients through discrete actions.",
        epilog="Tab completion: rl-gumbel --print-completion bash (or zsh, tcsh) prints a script\n"
        "for your shell, e.g. > ~/.local/share/bash-completion/completions/rl-gumbel",
    )
    parser.add_argument("--version", action="version", version=f"rl-gumbel {__version__}")
    shtab.add_argument_to(parser, COMPLETION, help="print a tab completion script")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    usage = "rl-gumbel train [--env ID] [--config FILE] [--run-dir DIR] [--SETTING VALUE ...]"
    training = verbs.add_parser("train", help="train an agent", usage=usage)
    add_train(training, algo, show_all=show_all)
    add_evaluate(verbs.add_parser("evaluate", help="evaluate the agent of a run"))
    listing = verbs.add_parser("list", help="show what there is")
    listing.add_argument("what", type=one_of(LISTS), choices=LISTS, help="what to list")
    return parser, dict(verbs.choices)


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
    command.add_argument("--no-progress", action="store_true", help="no progress display")
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


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate`."""
    parser.description = "Evaluate the agent of a run: argmax actions of the last model."
    parser.add_argument("run", metavar="RUN", help="directory that train wrote")
    add = parser.add_argument
    add("--episodes", type=at_least(1), default=100, metavar="N", help="(default: 100)")
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
    add("--render", action="store_true", help="show the episodes in a window")
    add("--json", action="store_true", help="print one JSON object")


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
