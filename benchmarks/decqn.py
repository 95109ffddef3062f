"""DecQN: Q-learning with a utility for each factor and no actor, as a peer of the benchmark.

Seyde et al. 2023, "Solving Continuous Control via Q-learning" (arXiv 2210.12566): Q is the mean
over the factors of their utilities (eq. 2), so that its maximum is found factor by factor; double
Q-learning by two critics, whose mean is the target, Huber loss, n-step returns, prioritised replay.
Its defaults are those of the authors' code (https://github.com/tseyde/decqn, commit 1a11cac,
`decqn/config_default.py`) but for layers of 256 where they have 512, one update for each step where
they make one for eight, and rewards scaled as for our agents.
"""

from typing import Any, ClassVar

import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from rl_gumbel.actions import ActionLayout
from rl_gumbel.algorithms.off_policy import BatchedOffPolicyAlgorithm
from rl_gumbel.algorithms.optimize import descend
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.extractors import DevicePreprocessing
from rl_gumbel.logger import record
from rl_gumbel.losses import soft_bellman_target
from rl_gumbel.networks import EnsembleLinear, hidden_layers
from rl_gumbel.policies.masks import MaskedAlgorithm, MaskedPrediction

NUM_CRITICS = 2


class Utilities(DevicePreprocessing):
    """Observations to the utilities of each factor's categories, `[E, B, K, N]`."""

    def __init__(self, observation_space: Any, action_space: Any, net_arch: list[int]) -> None:
        super().__init__(
            observation_space, action_space, features_extractor=FlattenExtractor(observation_space)
        )
        self.layout = ActionLayout.from_space(action_space)
        widths = [self.features_extractor.features_dim, *net_arch]
        self.trunk = hidden_layers(NUM_CRITICS, widths, nn.ELU, True)
        self.output = EnsembleLinear(NUM_CRITICS, widths[-1], self.layout.num_flat)

    def forward(self, obs: Any) -> Tensor:
        features = self.extract_features(obs, self.features_extractor)
        hidden = self.trunk(features.expand(NUM_CRITICS, -1, -1))
        return self.layout.unflatten(self.output(hidden))


class DecQNPolicy(MaskedPrediction):
    """Each factor takes its best category, or with probability `epsilon` any that is allowed."""

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        lr_schedule: Any,
        net_arch: list[int],
        epsilon: float,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.layout = ActionLayout.from_space(action_space)
        self.epsilon = epsilon
        self.online, self.target = (
            Utilities(observation_space, action_space, net_arch) for _ in range(2)
        )
        self.target.load_state_dict(self.online.state_dict())
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr_schedule(1), fused=True)
        self.register_buffer("valid", self.layout.valid, persistent=False)

    def allowed(self, mask: Tensor | None) -> Tensor:
        """Return the categories that there are, of a mask too."""
        return self.valid if mask is None else mask

    def distribution(self, obs: Any, mask: Tensor | None = None) -> FactoredCategorical:
        """Return the epsilon-greedy policy, which is a factored categorical."""
        utilities = self.online(obs).mean(0)
        allowed = self.allowed(mask).expand_as(utilities)
        best = utilities.masked_fill(~allowed, -torch.inf).argmax(-1)
        share = allowed / allowed.sum(-1, keepdim=True)
        probs = self.epsilon * share + (1 - self.epsilon) * self.layout.index_to_one_hot(best)
        return FactoredCategorical(probs.clamp_min(1e-30).log(), allowed, validate=False)

    def act(self, obs: Any, mask: Tensor | None = None) -> Tensor:
        """Return epsilon-greedy categories `[B, K]`."""
        return self.distribution(obs, mask).sample()


class DecQN(MaskedAlgorithm, BatchedOffPolicyAlgorithm):
    """The algorithm, on replay of any environment; see the top of the file."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": DecQNPolicy}
    policy: DecQNPolicy
    compile = False

    def __init__(
        self,
        policy: str,
        env: Any,
        learning_rate: float = 1e-4,
        buffer_size: int = 300_000,
        batch_size: int = 256,
        gamma: float = 0.99,
        n_steps: int = 3,
        train_freq: int = 1,
        gradient_steps: int = 1,
        target_update_interval: int = 100,
        epsilon: float = 0.1,
        reward_scale: float = 1.0,
        net_arch: tuple[int, ...] = (256, 256),
        seed: int | None = None,
        device: str = "auto",
    ) -> None:
        self.priority_exponent, self.importance_exponent = 0.6, 0.2
        self.max_grad_norm = 40.0
        self.target_update_interval = target_update_interval
        self.reward_scale = reward_scale
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts=1000,
            batch_size=batch_size,
            gamma=gamma,
            n_steps=n_steps,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            policy_kwargs={"net_arch": list(net_arch), "epsilon": epsilon},
            seed=seed,
            device=device,
            sde_support=False,
            support_multi_env=True,
        )
        self._setup_model()

    def train(self, gradient_steps: int, batch_size: int) -> None:
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self.replay_buffer.importance_exponent = self.importance_exponent
        metrics = [self.update(batch_size) for _ in range(gradient_steps)]
        if self._n_updates % 1000 < gradient_steps:
            record(self.logger, metrics)

    def update(self, batch_size: int) -> dict[str, Tensor]:
        """Take one step on the utilities; return what is logged."""
        batch = self.replay_buffer.sample(batch_size)
        target = self.target_value(batch)
        index = self.layout.to_index(batch.actions)
        errors = self.value(self.policy.online(batch.observations), index) - target
        huber = huber_loss(errors, torch.zeros_like(errors), reduction="none")
        loss = (huber * batch.weights.squeeze(-1)).mean(-1).sum()
        descend(self.policy.optimizer, loss, self.max_grad_norm)
        self.replay_buffer.update_priorities(batch.positions, errors.detach().abs().mean(0))
        self._n_updates += 1
        if self._n_updates % self.target_update_interval == 0:
            self.policy.target.load_state_dict(self.policy.online.state_dict())
        return {"train/critic_loss": loss.detach()}

    @torch.no_grad()  # a constant
    def target_value(self, batch: Any) -> Tensor:
        """Return `[E, M]` targets: each critic chooses, the mean of the target critics judges."""
        next_obs = batch.next_observations
        allowed = self.policy.allowed(batch.next_action_masks)
        best = self.policy.online(next_obs).masked_fill(~allowed, -torch.inf).argmax(-1)
        judged = self.policy.target(next_obs).mean(0).expand(NUM_CRITICS, -1, -1, -1)
        discount = self.gamma if batch.discounts is None else batch.discounts.squeeze(-1)
        return soft_bellman_target(
            self.reward_scale * batch.rewards.squeeze(-1),
            batch.dones.squeeze(-1),
            discount,
            self.value(judged, best),
        )

    def value(self, utilities: Tensor, index: Tensor) -> Tensor:
        """Return `[E, M]`, the mean over factors of utilities `[E, M, K, N]` of categories."""
        index = index.expand(len(utilities), -1, -1).unsqueeze(-1)
        return utilities.gather(-1, index).squeeze(-1).mean(-1)
