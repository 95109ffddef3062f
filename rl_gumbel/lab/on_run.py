"""The estimators measured on the critic and the states of a run, and which of them to take."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.envs.base import BatchedEnv
from rl_gumbel.estimators import ESTIMATORS
from rl_gumbel.lab.measure import BASELINES, Method, measure, microseconds
from rl_gumbel.lab.objectives import REFERENCE_DRAWS, CriticObjective
from rl_gumbel.losses import MAX_JOINT_ACTIONS
from rl_gumbel.policies.factored import FactoredPolicy
from rl_gumbel.rollout import collect
from rl_gumbel.types import Obs

TEMPERATURES = (0.3, 0.5, 1.0, 2.0)
"""Tried beside the default of each estimator and what the run trains with."""
ALIAS = "decoupled_straight_through"
"""`straight_through` by a longer name, since a policy samples at temperature 1."""
MARGIN = 0.02
"""Of cosine, for which nobody need change a setting."""
EXACT, LOCAL = Method("exact"), Method("local_expectation")
BEST_BASELINE = Method("score_function_baseline")
Row = dict[str, Any]


@torch.no_grad()  # states are data
def collect_states(
    policy: FactoredPolicy, env: BatchedEnv, num_steps: int, count: int, seed: int
) -> tuple[Obs, Tensor | None]:
    """Return observations `[S, *O]` that the sampling policy sees, and masks `[S, K, N]` or None.

    Args:
        policy: of the run.
        env: B environments.
        num_steps: T, that every environment takes.
        count: S, at most T times B.
        seed: of the environments and of the choice among their states.
    """
    collected = collect(env, policy.act, env.reset(seed), num_steps)
    assert collected is not None  # nothing gives the rollout up
    rollout = collected[0]
    steps, num_envs = rollout.reward.shape
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(steps * num_envs, generator=generator)[:count].to(env.device)
    obs = tree_map(lambda part: part[:-1].flatten(0, 1)[rows], rollout.obs)
    mask = rollout.action_mask
    return obs, None if mask is None else mask[:-1].flatten(0, 1)[rows]


def training_method(objective: Any, progress_remaining: float) -> Method:
    """Return what an algorithm trains with, from its `ActorObjective`.

    Args:
        objective: of the algorithm.
        progress_remaining: part of the training that is to come, for a temperature that moves.
    """
    if objective.actor_gradient != "estimator":
        return Method(objective.actor_gradient)
    return Method(
        objective.estimator,
        objective.temperature(progress_remaining),
        tuple(sorted(objective.estimator_kwargs.items())),
    )


@dataclass(frozen=True)
class Result:
    """What was measured on a run."""

    rows: list[Row]
    """One for each method and temperature, the highest cosine first."""
    best: Row
    """The recommended one."""
    present: Row
    """What the run trains with."""

    @property
    def sums(self) -> list[Row]:
        """What sums over actions instead of sampling one, where training can do it."""
        return [row for row in self.rows if row["method"] in (EXACT.name, LOCAL.name)]

    @property
    def best_hard(self) -> Row:
        """The estimator with the highest cosine among those whose forward value is one-hot."""
        return next(
            row
            for row in self.rows
            if row["method"] in ESTIMATORS
            and row["method"] != ALIAS
            and not ESTIMATORS[row["method"]].is_relaxed
        )


class BatchGradient:
    """Gradients of the mean value of a batch in the actor's weights.

    That is what the optimiser sees: states share the weights, so that the noise of one is averaged
    with that of others, which no gradient at the logits would show.

    Args:
        policy: with a critic of actions.
        obs: `[S, *O]`.
        mask: `[S, K, N]` or None.
        use_mean: whether the actor climbs the mean of the ensemble, not its minimum.
    """

    def __init__(
        self, policy: FactoredPolicy, obs: Obs, mask: Tensor | None, use_mean: bool = False
    ) -> None:
        policy.set_training_mode(False)
        self.layout = policy.layout
        self.policy = policy.distribution(obs, mask)
        self.weights = [p for p in policy.actor.parameters() if p.requires_grad]
        normalizer = getattr(policy, "normalizer", None)
        with torch.no_grad():  # as in training: the value is differentiated in the action alone
            obs = obs if normalizer is None else normalizer.normalize(obs)
            features = policy.critic.features(obs)
        self.objective = CriticObjective(policy.critic.network, features, policy.layout, use_mean)

    def __call__(self, method: Method) -> Tensor:
        """Return one gradient `[P]` by a method; by `exact` the reference, the same each time."""
        # A leaf, so that the critic is differentiated once and the actor after it.
        leaf = self.policy.logits.detach().requires_grad_()
        branch = FactoredCategorical(leaf, self.policy.mask, validate=False)
        value = method.value(branch, self.objective, self.layout).mean()
        slope = torch.autograd.grad(value, leaf)[0]
        parts = torch.autograd.grad(
            self.policy.logits, self.weights, slope, retain_graph=True, materialize_grads=True
        )
        return torch.cat([part.flatten() for part in parts])

    def sample(self, method: Method, count: int) -> Tensor:
        """Return gradients `[count, 1, P]`."""
        return torch.stack([self(method) for _ in range(count)]).unsqueeze(1)


def measure_run(gradient: BatchGradient, present: Method, draws: int) -> Result:
    """Return the errors of every method on one batch of states.

    Args:
        gradient: of that batch.
        present: what the run trains with.
        draws: gradients of the batch for each method.
    """
    reference = gradient(EXACT).unsqueeze(0)
    noise = 0.0
    if not gradient.objective.is_exact:
        errors = measure(partial(gradient.sample, LOCAL), reference, draws)
        noise = math.sqrt(errors.variance / REFERENCE_DRAWS)
    rows = []
    for method in candidates(present):
        if method == EXACT and gradient.layout.num_joint > MAX_JOINT_ACTIONS:
            continue  # training refuses it too
        if method == BEST_BASELINE and not gradient.objective.is_exact:
            continue  # it needs the expectation anew for each gradient
        sample = partial(gradient.sample, method)
        if method == EXACT:  # the same each time, and perhaps slow
            sample = partial(reference.unsqueeze(0).repeat_interleave, dim=0)
        errors = measure(sample, reference, draws)
        rows.append(
            {
                "method": method.name,
                "temperature": method.temperature,
                "trains": method == present,
                "recommended": False,
                "states": len(gradient.objective.features),
                "microseconds": microseconds(partial(gradient, method)),
                "reference": gradient.objective.reference,
                "reference_noise": noise,
                **asdict(errors),
            }
        )
    rows.sort(key=lambda row: -row["cosine"])
    best = recommend(rows)
    best["recommended"] = True
    return Result(rows, best, next(row for row in rows if row["trains"]))


def candidates(present: Method) -> list[Method]:
    """Return every estimator at several temperatures, the baselines, and what the run has."""
    methods = {present: None}
    for name, estimator in ESTIMATORS.items():
        for temperature in sorted({estimator.default_temperature, *TEMPERATURES}):
            if temperature >= estimator.min_temperature:
                methods[Method(name, temperature)] = None
    return [*methods, *(Method(name) for name in BASELINES if Method(name) not in methods)]


def recommend(rows: Sequence[Row]) -> Row:
    """Return the estimator with the highest cosine; what the run has, where that is no worse.

    No worse: within two standard errors of the difference and `MARGIN`.
    """
    able = [row for row in rows if row["trains"] or row["method"] not in {*BASELINES, ALIAS}]
    best = max(able, key=lambda row: row["cosine"])
    for row in able:
        noise = math.hypot(row["cosine_se"], best["cosine_se"])
        if row["trains"] and row["cosine"] >= best["cosine"] - 2 * noise - MARGIN:
            return row
    return best
