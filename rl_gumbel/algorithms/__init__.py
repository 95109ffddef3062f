"""The algorithms, named by what the gradient flows through."""

from stable_baselines3.common.base_class import BaseAlgorithm

from rl_gumbel.algorithms.ppo import BatchedPPO
from rl_gumbel.algorithms.reppo import GumbelREPPO
from rl_gumbel.algorithms.sac import GumbelSAC
from rl_gumbel.algorithms.shac import GumbelSHAC

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "sac": GumbelSAC,
    "reppo": GumbelREPPO,
    "shac": GumbelSHAC,
    "ppo": BatchedPPO,
}
"""Every algorithm by the name that the command line and `configs/` use."""

__all__ = ["ALGORITHMS", "BatchedPPO", "GumbelREPPO", "GumbelSAC", "GumbelSHAC"]
