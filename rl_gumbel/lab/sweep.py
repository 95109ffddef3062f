"""The experiments on random objectives: each a table of errors, or of times, as rows.

A row stands for one method in one setting. The base setting is `FACTORS` factors of `CATEGORIES`
categories, logits and objectives drawn anew for each of `INSTANCES` instances.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.estimators import ESTIMATORS
from rl_gumbel.lab.measure import (
    BASELINES,
    NUM_GROUPS,
    Method,
    exact_gradient,
    logit_gradients,
    measure,
    microseconds,
)
from rl_gumbel.lab.objectives import OBJECTIVES, CriticObjective, Objective
from rl_gumbel.networks import CRITICS, ConcatCritic

INSTANCES = 16
FACTORS, CATEGORIES, SHARPNESS = 4, 4, 1.0
"""Sharpness is the standard deviation of the logits."""
TEMPERATURES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0)
FACTOR_COUNTS = (1, 2, 4, 8, 16, 32, 64)
CATEGORY_COUNTS = (2, 4, 8, 16, 32)
SHARPNESSES = (0.25, 0.5, 1.0, 2.0, 4.0)
COST_BATCH = 256
COST_WIDTHS = [64, 64]
"""Of the critic that the cost is measured through."""
FIT_STEPS, FIT_BATCH = 500, 512
Row = dict[str, Any]


def all_methods() -> list[Method]:
    """Return every estimator at its default temperature, and every baseline."""
    return [Method(name) for name in (*ESTIMATORS, *BASELINES)]


def make_layout(num_factors: int, num_categories: int) -> ActionLayout:
    """Return K factors of N categories."""
    return ActionLayout.from_space(spaces.MultiDiscrete([num_categories] * num_factors))


class Setting:
    """S random instances of a policy and an objective, and their true gradient.

    Args:
        seed: of logits and objective.
        objective: a name in `OBJECTIVES`.
        num_factors: K.
        num_categories: N.
        sharpness: standard deviation of the logits.
    """

    def __init__(
        self,
        seed: int,
        objective: str,
        num_factors: int = FACTORS,
        num_categories: int = CATEGORIES,
        sharpness: float = SHARPNESS,
    ) -> None:
        shape = (INSTANCES, num_factors, num_categories)
        generator = torch.Generator().manual_seed(seed)
        self.layout = make_layout(num_factors, num_categories)
        self.logits = sharpness * torch.randn(shape, generator=generator)
        self.objective: Objective = OBJECTIVES[objective](shape, generator)
        self.name, self.sharpness = objective, sharpness
        self.generator = torch.Generator().manual_seed(seed + 1)
        """Of the samples."""

    def rows(self, experiment: str, methods: Sequence[Method], draws: int) -> Iterator[Row]:
        """Yield the errors of each method; an expensive one is sampled less often."""
        reference = exact_gradient(self.objective, self.logits, self.layout)
        for method in methods:
            evaluations = method.num_evaluations(self.layout)
            draw = logit_gradients(method, self.objective, self.logits, self.layout, self.generator)
            # `exact` has no samples, and K N evaluations at a time would take most of the minute.
            count = NUM_GROUPS if not evaluations else max(draws * 8 // max(evaluations, 8), 1)
            yield {
                "experiment": experiment,
                "objective": self.name,
                "method": method.name,
                "temperature": method.temperature,
                "factors": self.layout.num_factors,
                "categories": self.layout.num_categories,
                "sharpness": self.sharpness,
                "reference": self.objective.reference,
                "instances": len(self.logits),
                "evaluations": evaluations,
                **asdict(measure(draw, reference, count)),
            }


def temperature(draws: int, seed: int) -> Iterator[Row]:
    """Yield the errors of the estimators over temperature, on three objectives."""
    for objective in ("linear", "quadratic", "mlp"):
        methods = [
            Method(name, value)
            for name, value in itertools.product(ESTIMATORS, TEMPERATURES)
            if value >= ESTIMATORS[name].min_temperature
        ]
        yield from Setting(seed, objective).rows("temperature", methods, draws)


def factors(draws: int, seed: int) -> Iterator[Row]:
    """Yield the errors over the number of factors, on three objectives."""
    for objective, count in itertools.product(("linear", "quadratic", "mlp"), FACTOR_COUNTS):
        setting = Setting(seed, objective, num_factors=count)
        yield from setting.rows("factors", all_methods(), draws)


def categories(draws: int, seed: int) -> Iterator[Row]:
    """Yield the errors over the number of categories."""
    for objective, count in itertools.product(("linear", "quadratic", "mlp"), CATEGORY_COUNTS):
        setting = Setting(seed, objective, num_categories=count)
        yield from setting.rows("categories", all_methods(), draws)


def sharpness(draws: int, seed: int) -> Iterator[Row]:
    """Yield the errors over the sharpness of the policy, from uniform to nearly deterministic."""
    for objective, value in itertools.product(("linear", "quadratic", "mlp"), SHARPNESSES):
        setting = Setting(seed, objective, sharpness=value)
        yield from setting.rows("sharpness", all_methods(), draws)


def shapes(draws: int, seed: int) -> Iterator[Row]:
    """Yield the errors on every shape of objective, critics fitted to the same values among them.

    `fit` is the explained variance of a critic over the joint actions.
    """
    for objective in OBJECTIVES:
        setting = Setting(seed, objective)
        for row in setting.rows("shapes", all_methods(), draws):
            yield row | {"fit": None}
    for name in FITTED:
        setting = Setting(seed, "mlp")
        setting.objective, fit = fit_critic(name, setting, seed)
        setting.name = name
        for row in setting.rows("shapes", all_methods(), draws):
            yield row | {"fit": fit}


FITTED: Mapping[str, dict[str, Any]] = {
    "critic concat": {"critic": "concat"},
    "critic concat, first layer": {"critic": "concat", "action_layer": "first"},
    "critic multilinear": {"critic": "multilinear"},
}
"""Critics of `rl_gumbel.networks` by the name that they have in the rows."""


def fit_critic(name: str, setting: Setting, seed: int) -> tuple[CriticObjective, float]:
    """Return a critic that has learned the values of the joint actions, and how well it has.

    Data as a replay would have it, one-hot actions alone: what the critic says between them,
    and the slope that straight-through reads, is its own.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of the weights
        options = dict(FITTED[name])
        network = CRITICS[options.pop("critic")](16, setting.layout, [64, 64], **options)
        features = torch.randn(len(setting.logits), 16)
        critic = CriticObjective(network, features, setting.layout)
        joint = torch.cartesian_prod(*[torch.arange(n) for n in setting.layout.sizes])
        one_hot = setting.layout.index_to_one_hot(joint).unsqueeze(1)
        one_hot = one_hot.expand(-1, len(features), -1, -1).contiguous()  # [J, S, K, N]
        target = setting.objective(one_hot)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, FIT_STEPS)
        for _ in range(FIT_STEPS):
            rows = torch.randint(target.numel(), (FIT_BATCH,))
            state = rows % len(features)
            values = network(features[state], one_hot.flatten(0, 1)[rows])
            loss = (values - target.flatten()[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        network.requires_grad_(False)  # the lab differentiates in the logits
        error = critic(one_hot) - target
    return critic, 1 - float(error.var() / target.var())


def cost(draws: int, seed: int) -> Iterator[Row]:
    """Yield the time of a gradient through a critic, forward and backward, over the factors.

    `draws` is not used: the time of one gradient does not depend on it.
    """
    for count in FACTOR_COUNTS:
        layout = make_layout(count, CATEGORIES)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = ConcatCritic(32, layout, COST_WIDTHS).requires_grad_(False)
            features = torch.randn(COST_BATCH, 32)
            logits = torch.randn(COST_BATCH, count, CATEGORIES)
        critic = CriticObjective(network, features, layout)
        for method in all_methods():
            if method.name == "score_function_baseline":
                continue  # a critic of states gives its baseline; the rest is score_function
            if method.name == "exact" and critic.joint is None:
                continue  # more joint actions than can be summed over

            def call(method: Method = method) -> Tensor:
                return gradient(method, critic, logits, layout)  # noqa: B023 (called at once)

            yield {
                "experiment": "cost",
                "method": method.name,
                "factors": count,
                "categories": CATEGORIES,
                "batch": COST_BATCH,
                "critic": f"concat {COST_WIDTHS}, ensemble of {network.n_critics}",
                "threads": torch.get_num_threads(),
                "microseconds": microseconds(call),
            }


def gradient(method: Method, critic: Objective, logits: Tensor, layout: ActionLayout) -> Tensor:
    """Return one gradient of a batch in the logits `[B, K, N]`."""
    leaf = logits.detach().requires_grad_()
    policy = FactoredCategorical(leaf, layout.mask, validate=False)
    value = method.value(policy, critic, layout).sum()
    return torch.autograd.grad(value, leaf)[0]
