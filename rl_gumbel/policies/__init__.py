"""SB3 policy classes: the native one of `GumbelSAC`, and drop-ins for stock algorithms."""

from typing import TYPE_CHECKING

from rl_gumbel.policies.factored import (
    FactoredActor,
    FactoredCnnPolicy,
    FactoredCritic,
    FactoredMultiInputPolicy,
    FactoredPolicy,
)
from rl_gumbel.policies.on_policy import GumbelActorCriticPolicy
from rl_gumbel.policies.one_hot import GumbelSACPolicy, GumbelTD3Policy
from rl_gumbel.policies.stock import check_stock, stock_kwargs

if TYPE_CHECKING:
    from rl_gumbel.policies.maskable import MaskableGumbelActorCriticPolicy

__all__ = [
    "FactoredActor",
    "FactoredCnnPolicy",
    "FactoredCritic",
    "FactoredMultiInputPolicy",
    "FactoredPolicy",
    "GumbelActorCriticPolicy",
    "GumbelSACPolicy",
    "GumbelTD3Policy",
    "MaskableGumbelActorCriticPolicy",
    "check_stock",
    "stock_kwargs",
]


def __getattr__(name: str) -> object:
    """The maskable policy, imported when first asked for: sb3-contrib is an optional package.

    Raises:
        AttributeError: for any other name.
        ImportError: without sb3-contrib; the message says how to install it.
    """
    if name != "MaskableGumbelActorCriticPolicy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rl_gumbel.policies.maskable import MaskableGumbelActorCriticPolicy

    return MaskableGumbelActorCriticPolicy
