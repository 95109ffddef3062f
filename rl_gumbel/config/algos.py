"""The configuration of each algorithm, by the name that the command line and `configs/` use."""

from collections.abc import Mapping

from rl_gumbel.config.ppo import PPOConfig
from rl_gumbel.config.reppo import REPPOConfig
from rl_gumbel.config.sac import SACConfig
from rl_gumbel.config.schema import TrainConfig
from rl_gumbel.config.shac import SHACConfig

ALGOS: Mapping[str, type[TrainConfig]] = {
    "sac": SACConfig,
    "reppo": REPPOConfig,
    "shac": SHACConfig,
    "ppo": PPOConfig,
}
"""The first is the default."""
DEFAULT_ALGO = next(iter(ALGOS))
