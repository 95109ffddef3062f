"""The words of the command line: verbs, completion, and what is wrong with a word."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

import shtab

from rl_gumbel import __version__
from rl_gumbel.cli.errors import UserError
from rl_gumbel.cli.options import (
    ENV_KWARGS,
    add_evaluate,
    add_export,
    add_lab,
    add_resume,
    add_train,
    one_of,
    read_option,
)
from rl_gumbel.cli.viewing import add_plot, add_record, add_report, add_tensorboard
from rl_gumbel.config import load_config, suggest
from rl_gumbel.config.reading import Place

COMPLETION = "--print-completion"
LISTS = ("envs", "algos", "estimators", "configs")


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
    add_resume(verbs.add_parser("resume", help="go on with a run from its last checkpoint"))
    add_evaluate(verbs.add_parser("evaluate", help="evaluate the agent of a run"))
    add_lab(verbs.add_parser("lab", help="measure the estimators, on a run's critic if asked"))
    add_plot(verbs.add_parser("plot", help="draw runs over seeds"))
    add_record(verbs.add_parser("record", help="film the agent of a run"))
    add_report(verbs.add_parser("report", help="write a page about a run"))
    add_tensorboard(verbs.add_parser("tensorboard", help="open TensorBoard on runs"))
    add_export(verbs.add_parser("export", help="write an agent for Stable-Baselines3"))
    listing = verbs.add_parser("list", help="show what there is")
    listing.add_argument("what", type=one_of(LISTS), choices=LISTS, help="what to list")
    return parser, dict(verbs.choices)
