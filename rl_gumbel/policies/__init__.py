"""SB3 policy classes: the native one of `GumbelSAC`, and drop-ins for stock algorithms."""

from rl_gumbel.policies.factored import (
    FactoredActor,
    FactoredCnnPolicy,
    FactoredCritic,
    FactoredMultiInputPolicy,
    FactoredPolicy,
)

__all__ = [
    "FactoredActor",
    "FactoredCnnPolicy",
    "FactoredCritic",
    "FactoredMultiInputPolicy",
    "FactoredPolicy",
]
