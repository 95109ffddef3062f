"""`rl-gumbel list`: the environments, algorithms, estimators and tuned settings there are."""

import sys
from collections.abc import Iterator
from typing import get_args

from rl_gumbel.config import (
    ALGOS,
    CONFIGS,
    ESTIMATOR_OPTIONS,
    MIN_TEMPERATURE,
    find_tuned,
    load_config,
)
from rl_gumbel.config.estimator import Estimator

Row = tuple[str, ...]


def show_list(what: str) -> int:
    """Print a table, plain lines with tabs where the output is not a terminal; return 0."""
    header, rows = {
        "envs": (("environment", "actions", "backend", "tuned for"), list_envs),
        "algos": (("algorithm", "tuned environments"), list_algos),
        "estimators": (("estimator", "temperature", "options"), list_estimators),
        "configs": (("algorithm", "environment", "file"), list_configs),
    }[what]
    print_rows(header, list(rows()))
    return 0


def print_rows(header: Row, rows: list[Row]) -> None:
    """Print rows as a table for people, or as tab-separated values for programs."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def list_algos() -> Iterator[Row]:
    """Yield each algorithm with the environments it is tuned for."""
    for algo in ALGOS:
        yield algo, " ".join(sorted(path.stem for path in (CONFIGS / algo).glob("*.yaml")))


def list_estimators() -> Iterator[Row]:
    """Yield each estimator with the range of its temperature and its options."""
    for name in get_args(Estimator):
        low = MIN_TEMPERATURE.get(name)
        bound = f">= {low:g}" if low else "> 0"
        yield name, bound, " ".join(ESTIMATOR_OPTIONS.get(name, ()))


def list_configs() -> Iterator[Row]:
    """Yield each file of tuned settings."""
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        yield path.parent.name, path.stem, str(path)


def list_envs() -> Iterator[Row]:
    """Yield each environment that can be made here and can be trained on: ours, then others."""
    import gymnasium as gym

    from rl_gumbel.cli.environments import check_env
    from rl_gumbel.envs import ENVS, registered_id
    from rl_gumbel.vec_env.names import make_torch_env

    for env_id in sorted(ENVS):
        space = make_torch_env(env_id, 1).action_space
        yield env_id, str(space), "torch", find_algos(env_id)
    for env_id in sorted(gym.registry.keys() - {*ENVS, *map(registered_id, ENVS)}):
        try:
            env = check_env(load_config(None, {("env",): env_id}))
        except Exception:  # needs a package that is missing, has other spaces, or is broken
            continue
        yield env_id, str(env.action_space), "gymnasium", find_algos(env_id)


def find_algos(env_id: str) -> str:
    """Return the algorithms that are tuned for an environment."""
    return " ".join(algo for algo in ALGOS if find_tuned(algo, env_id))
