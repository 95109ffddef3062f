"""Settings of `BatchedPPO` and its networks."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Discriminator, NonNegativeFloat, PositiveFloat, PositiveInt, Tag

from rl_gumbel.config.schema import (
    Activation,
    Fraction,
    Ignored,
    Scheduled,
    Section,
    TrainConfig,
    tag,
)


class PPOLayers(Section):
    """Hidden layers of policy and value function, where they differ."""

    pi: list[PositiveInt]
    """Hidden layers of the policy."""
    vf: list[PositiveInt]
    """Hidden layers of the value function."""


Layers = Annotated[
    Annotated[list[PositiveInt], Tag("a list")] | Annotated[PPOLayers, Tag("a mapping")],
    Discriminator(tag),
]


class PPOSettings(Section):
    """Keyword arguments of `BatchedPPO`."""

    learning_rate: Scheduled = 3e-4
    """Learning rate, a number or {schedule, start, end}."""
    n_steps: PositiveInt = 128
    """Steps of every environment in an iteration."""
    batch_size: PositiveInt | None = None
    """Transitions per update; null cuts the rollout into num_minibatches."""
    num_minibatches: PositiveInt | None = None
    """Updates of an epoch; null is 4, without batch_size."""
    n_epochs: PositiveInt = 4
    """Passes over each rollout."""
    gamma: Fraction = 0.99
    """Discount factor."""
    gae_lambda: Fraction = 0.95
    """Weight of longer returns in the advantage: 0 is one step, 1 the whole episode."""
    clip_range: Scheduled = 0.2
    """Change of a probability ratio beyond which it has no gradient; {schedule, start, end} too."""
    clip_range_vf: Scheduled | None = None
    """The same for values, in the units of the return; null does not clip them."""
    normalize_advantage: bool = True
    """Standardise the advantages of each minibatch."""
    ent_coef: NonNegativeFloat = 0.0
    """Weight of the entropy bonus."""
    vf_coef: NonNegativeFloat = 0.5
    """Weight of the value loss."""
    max_grad_norm: PositiveFloat = 0.5
    """Gradient clipping by norm."""
    target_kl: PositiveFloat | None = None
    """Divergence from the rollout's policy that ends an iteration's updates; null is no limit."""
    normalize_observations: bool = False
    """Standardise observations by their running mean and deviation."""
    normalize_rewards: bool = False
    """Divide rewards by the running deviation of the discounted return; logs stay raw."""
    compile: bool = False
    """Compile the loss and its gradient with torch.compile."""
    stats_window_size: PositiveInt = 100
    """Episodes in the average of rollout/ep_rew_mean."""


class PPOPolicySettings(Section):
    """Keyword arguments of its policy."""

    net_arch: Layers = [64, 64]  # noqa: RUF012 (pydantic copies it)
    """Hidden layers of policy and value function, or {pi: [...], vf: [...]}."""
    activation_fn: Activation = "tanh"
    """Activation between the layers."""
    ortho_init: bool = True
    """Orthogonal initial weights."""
    shared_factors: bool = False
    """The same weights for each of K equal parts of the observation, one for each action factor."""
    share_features_extractor: bool = True
    """One features extractor for policy and value function."""
    normalize_images: bool = True
    """Divide image observations by 255."""


class PPOConfig(TrainConfig):
    """A run of `BatchedPPO`."""

    algo: Literal["ppo"] = "ppo"
    """Algorithm."""
    algorithm: PPOSettings = PPOSettings()
    """Settings of the algorithm."""
    policy_kwargs: PPOPolicySettings = PPOPolicySettings()
    """Settings of its networks."""

    def ignored(self) -> Iterator[Ignored]:
        """Yield each setting without effect."""
        if self.algorithm.batch_size is not None:
            field, cause = "algorithm.num_minibatches", "algorithm.batch_size"
            yield Ignored(field, cause, "batch_size is given")
