"""The public names of rl-gumbel, each imported when first asked for.

`import rl_gumbel` itself imports neither torch nor Stable-Baselines3, so that the command line
answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl_gumbel.actions import ActionLayout
    from rl_gumbel.algorithms import ALGORITHMS, BatchedPPO, GumbelREPPO, GumbelSAC, GumbelSHAC
    from rl_gumbel.checkpoint import load_model, save_model
    from rl_gumbel.codes import GaussianCodes, GumbelCodes
    from rl_gumbel.codes_training import CodesCallback, pretrain_codes
    from rl_gumbel.distributions import FactoredCategorical
    from rl_gumbel.envs.base import BatchedEnv
    from rl_gumbel.estimators import ESTIMATORS, Estimator
    from rl_gumbel.policies import (
        GumbelActorCriticPolicy,
        GumbelSACPolicy,
        GumbelTD3Policy,
        MaskableGumbelActorCriticPolicy,
        check_stock,
        stock_kwargs,
    )
    from rl_gumbel.schedules import Schedule, make_schedule
    from rl_gumbel.types import Rollout, Sample, Step
    from rl_gumbel.vec_env import GymEnv, GymVectorEnv, SB3VecEnv, make_vec
    from rl_gumbel.wrappers import DiscretizeActions, FlattenActions, MasksInInfo, OneHotActions

__version__ = "0.1.0"

__all__ = [
    "ALGORITHMS",
    "ESTIMATORS",
    "ActionLayout",
    "BatchedEnv",
    "BatchedPPO",
    "CodesCallback",
    "DiscretizeActions",
    "Estimator",
    "FactoredCategorical",
    "FlattenActions",
    "GaussianCodes",
    "GumbelActorCriticPolicy",
    "GumbelCodes",
    "GumbelREPPO",
    "GumbelSAC",
    "GumbelSACPolicy",
    "GumbelSHAC",
    "GumbelTD3Policy",
    "GymEnv",
    "GymVectorEnv",
    "MaskableGumbelActorCriticPolicy",
    "MasksInInfo",
    "OneHotActions",
    "Rollout",
    "SB3VecEnv",
    "Sample",
    "Schedule",
    "Step",
    "__version__",
    "check_stock",
    "load_model",
    "make_schedule",
    "make_vec",
    "pretrain_codes",
    "save_model",
    "stock_kwargs",
]

_HOMES = {
    "actions": ["ActionLayout"],
    "algorithms": ["ALGORITHMS", "BatchedPPO", "GumbelREPPO", "GumbelSAC", "GumbelSHAC"],
    "checkpoint": ["load_model", "save_model"],
    "codes": ["GaussianCodes", "GumbelCodes"],
    "codes_training": ["CodesCallback", "pretrain_codes"],
    "distributions": ["FactoredCategorical"],
    "envs.base": ["BatchedEnv"],
    "estimators": ["ESTIMATORS", "Estimator"],
    "policies": [
        "GumbelActorCriticPolicy",
        "GumbelSACPolicy",
        "GumbelTD3Policy",
        "MaskableGumbelActorCriticPolicy",
        "check_stock",
        "stock_kwargs",
    ],
    "schedules": ["Schedule", "make_schedule"],
    "types": ["Rollout", "Sample", "Step"],
    "vec_env": ["GymEnv", "GymVectorEnv", "SB3VecEnv", "make_vec"],
    "wrappers": ["DiscretizeActions", "FlattenActions", "MasksInInfo", "OneHotActions"],
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """The public name `name`, from its module.

    Raises:
        AttributeError: If there is no such public name.
        ImportError: If the name needs an optional package that is not installed.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public: {__all__}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # asked for once only
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted(set(globals()) | set(__all__))
