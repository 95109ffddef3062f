"""Settings of a training run: frozen, typed, from a file and the command line.

`load_config(path, overrides)` returns a `TrainConfig`; every mistake is a one-line
`ConfigError` that names the file, the line and the nearest known name. Imports neither torch nor
anything of ours.
"""

from rl_gumbel.config.algos import ALGOS, DEFAULT_ALGO
from rl_gumbel.config.errors import ConfigError, find_nearest, suggest
from rl_gumbel.config.estimator import ESTIMATOR_OPTIONS, MIN_TEMPERATURE
from rl_gumbel.config.reading import read_value
from rl_gumbel.config.resolve import CONFIGS, dump_config, find_tuned, load_config
from rl_gumbel.config.schema import ScheduleSettings, Section, TrainConfig
from rl_gumbel.config.settings import Setting, list_settings

__all__ = [
    "ALGOS",
    "CONFIGS",
    "DEFAULT_ALGO",
    "ESTIMATOR_OPTIONS",
    "MIN_TEMPERATURE",
    "ConfigError",
    "ScheduleSettings",
    "Section",
    "Setting",
    "TrainConfig",
    "dump_config",
    "find_nearest",
    "find_tuned",
    "list_settings",
    "load_config",
    "read_value",
    "suggest",
]
