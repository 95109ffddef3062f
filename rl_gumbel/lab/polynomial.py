"""The polynomial programme of the ReinMax paper, with the values at which methods come to rest.

Liu et al. 2023 (arXiv 2304.08612), section 5.1: 128 binary variables, minimise the mean of
E |z_i - 0.45|^p. The optimum is z = 0; straight-through stops before it, where the slopes at the
two ends balance.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.lab.measure import Method
from rl_gumbel.lab.sweep import make_layout

TARGET = 0.45
POWERS = (1.5, 2.0, 3.0)
VARIABLES, BATCH = 128, 64
STEPS, LEARNING_RATE, INTERVAL = 200, 0.1, 5
METHODS = (
    "straight_through",
    "straight_through_gumbel",
    "gapped_straight_through",
    "probabilities",
    "reinmax",
    "leave_one_out",
)
Row = dict[str, Any]


def loss_at(prob: float, power: float) -> float:
    """Return the expected loss of variables that are 1 with probability `prob`."""
    return float(prob * (1 - TARGET) ** power + (1 - prob) * TARGET**power)


def plateau(method: str, power: float) -> float | None:
    """Return the loss at which a method comes to rest, in closed form; None where there is none.

    With f'(1) = p 0.55^(p - 1) and f'(0) = -p 0.45^(p - 1), the mean gradient of straight-through
    is proportional to q f'(1) + (1 - q) f'(0), q the probability of 1, and vanishes inside;
    that of ReinMax to (f'(1) + f'(0)) / 2 > 0, of the same sign as the true one, f(1) - f(0).
    `probabilities` minimises f(q) and stops at q = 0.45.
    """
    at_one, at_zero = (1 - TARGET) ** (power - 1), TARGET ** (power - 1)
    rest = {
        "straight_through": at_zero / (at_zero + at_one),
        "probabilities": TARGET,
        "reinmax": 0.0,
        "leave_one_out": 0.0,
        "exact": 0.0,
    }
    return loss_at(rest[method], power) if method in rest else None


class Polynomial:
    """f(z) = mean_i |z_i - 0.45|^p, z_i the first coordinate of each one-hot; one instance."""

    reference = "closed form: separable"

    def __init__(self, power: float) -> None:
        self.power = power

    def __call__(self, one_hot: Tensor) -> Tensor:
        """Return values `[...]` of `[..., K, 2]`."""
        return (one_hot[..., 0] - TARGET).abs().pow(self.power).mean(-1)

    def expectation(self, policy: FactoredCategorical) -> Tensor:
        """Return the expected loss."""
        high, low = (1 - TARGET) ** self.power, TARGET**self.power
        loss: Tensor = (policy.probs[..., 0] * high + policy.probs[..., 1] * low).mean(-1)
        return loss


def train(method: Method, power: float, seed: int) -> Iterator[Row]:
    """Yield the expected loss every `INTERVAL` steps of Adam, from the uniform policy."""
    objective, layout = Polynomial(power), make_layout(VARIABLES, 2)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(VARIABLES, 2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE)
    for step in range(STEPS + 1):
        if step % INTERVAL == 0:
            policy = FactoredCategorical(logits.detach(), validate=False)
            yield {
                "experiment": "polynomial",
                "method": method.name,
                "temperature": method.temperature,
                "power": power,
                "step": step,
                "loss": float(objective.expectation(policy)),
                "plateau": plateau(method.name, power),
                "optimum": loss_at(0.0, power),
            }
        batch = FactoredCategorical(logits.expand(BATCH, -1, -1), validate=False)
        optimizer.zero_grad()
        method.value(batch, objective, layout, generator).mean().backward()
        optimizer.step()


def polynomial(draws: int, seed: int) -> Iterator[Row]:
    """Yield the losses of each method for each power; `draws` is not used."""
    for power in POWERS:
        for name in METHODS:
            yield from train(Method(name), power, seed)
