"""Every name that our algorithms log, defined once, and the one place that reads their tensors."""

from collections.abc import Mapping, Sequence

import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor

TAGS: Mapping[str, str] = {
    "train/actor_loss": "minus the value that the actor climbs, entropy bonus included",
    "train/approx_kl": "estimated divergence of the new policy from the one that acted, in nats",
    "train/clip_fraction": "share of samples whose probability ratio left the clip range",
    "train/clip_range": "clip range of the probability ratio",
    "train/clip_range_vf": "clip range of the value",
    "train/entropy_loss": "minus the policy's entropy in nats",
    "train/explained_variance": "1 - Var(return - value) / Var(return) before the update",
    "train/loss": "the whole loss of PPO, mean over the updates",
    "train/policy_gradient_loss": "minus PPO's clipped objective",
    "train/value_loss": "squared error of the values",
    "train/critic_loss": "half the squared TD error, with `num_bins` the cross-entropy in nats, "
    "summed over the ensemble; with priorities weighted by importance",
    "train/ent_coef": "entropy coefficient",
    "train/ent_coef_loss": "loss of the learned entropy coefficient",
    "train/kl_coef": "multiplier of the divergence beyond its bound",
    "train/kl": "divergence of the new policy from the one that acted, exact, in nats",
    "train/kl_exceeded": "fraction of states in which it is beyond its bound",
    "train/target_outside": "fraction of critic targets beyond the outermost bins",
    "train/skipped_updates": "optimiser steps not taken so far, the gradient not being finite",
    "rollout/repaired_steps": "steps so far whose infinities or NaNs `nonfinite` replaced",
    "rollout/restarts": "environments that failed and were made anew so far",
    "train/average_reward": "running mean of rewards and entropy bonuses, which are less by it",
    "train/learning_rate": "learning rate of all optimisers",
    "train/n_updates": "gradient steps so far",
    "estimator/temperature": "temperature of the gradient estimator",
    "estimator/entropy": "mean entropy of the policy over the mean of what is allowed at most, "
    "both over the batch",
    "estimator/entropy_per_factor": "the same for each factor, a histogram",
    "estimator/grad_norm": "norm of the actor's gradient, before clipping",
    "estimator/cosine": "mean cosine of the gradient, without entropy bonus, and the exact one",
    "estimator/variance": "variance of draws of that gradient over the exact one's squared norm",
    "codes/loss": "reconstruction loss plus the weighted divergence of observation codes, in nats",
    "codes/reconstruction_loss": "minus the log-likelihood of an observation given its drawn code",
    "codes/kl": "divergence of the code's distribution from the prior, in nats",
    "codes/perplexity": "categories in use, from 1 to all, of the argmax codes, mean over factors",
    "codes/temperature": "temperature of the codes' estimator",
    "policy/entropy_per_factor": "entropy of each factor as such a fraction: heights over factors",
    "actions/factor_00": "probability of each category, mean over recent states; one per factor",
    "video/episode": "the start of an episode of argmax actions, animated",
    "lab/estimators": "every estimator's cosine with the exact gradient on the present critic",
    "eval/mean_reward": "mean return of the argmax policy over the evaluation episodes",
    "eval/std_reward": "standard deviation of those returns (std_reward in evaluations.csv)",
    "eval/mean_ep_length": "mean length of the evaluation episodes",
}
"""Name to meaning. The `rollout/*` and `time/*` names are SB3's."""


def record(logger: Logger, metrics: Sequence[Mapping[str, Tensor]]) -> None:
    """Log the mean of each metric over the mappings; reads the device once.

    A metric that is not a scalar becomes a histogram, which only TensorBoard shows. No mappings log
    nothing.
    """
    columns: dict[str, list[Tensor]] = {}
    for row in metrics:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    means = {name: torch.stack(values).mean(0) for name, values in columns.items()}
    scalars = {name: value for name, value in means.items() if value.ndim == 0}
    if scalars:
        values = torch.stack([value.float() for value in scalars.values()]).tolist()
        for name, value in zip(scalars, values, strict=True):
            logger.record(name, value)
    for name in means.keys() - scalars.keys():
        logger.record(name, means[name].cpu(), exclude=("stdout", "log", "json", "csv"))


class Means:
    """Means of metrics over many updates, kept on the device until they are logged."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take in what one update measured."""
        for name, value in metrics.items():
            if name in self.sums:
                self.sums[name] += value
                self.counts[name] += 1
            else:  # a copy, since a CUDA graph writes its next result over this one
                self.sums[name] = value.detach().clone()  # for the log
                self.counts[name] = 1

    def record(self, logger: Logger, latest: Mapping[str, Tensor] | None = None) -> None:
        """Log the means, and other metrics as they are, and start anew; reads the device once."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        record(logger, [{**means, **(latest or {})}])
        self.sums.clear()
        self.counts.clear()
