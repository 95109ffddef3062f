"""How `GumbelSAC` updates: one after the other or several in one compiled call, and restarts."""

from abc import abstractmethod
from typing import ClassVar

import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from stable_baselines3.common.utils import update_learning_rate
from torch import Tensor

from rl_gumbel.algorithms.compilation import compiled
from rl_gumbel.algorithms.numbers import MAX_UNREAD
from rl_gumbel.algorithms.objective import ActorObjective
from rl_gumbel.algorithms.optimize import descend, is_traceable, log_coefficient, step_by
from rl_gumbel.algorithms.overlap import OverlappingAlgorithm
from rl_gumbel.buffers import DeviceReplayBuffer, DeviceReplaySamples
from rl_gumbel.logger import Means
from rl_gumbel.policies.factored import FactoredActor, FactoredCritic, FactoredPolicy

Batch = ReplayBufferSamples | DeviceReplaySamples
MAX_FUSED = 4
"""Gradient steps in one compiled call; with more of them it takes ever longer to compile."""


class SACUpdates(OverlappingAlgorithm):
    """Updates of critic, actor, entropy coefficient and target critic, by a subclass's losses.

    It also has the settings, and builds what stands here in `_setup_model`, before `_setup_losses`.
    """

    loop_state: ClassVar[tuple[str, ...]] = (
        *OverlappingAlgorithm.loop_state,
        "_means.sums",
        "_means.counts",
        "_latest",
    )
    policy: FactoredPolicy
    actor: FactoredActor
    critic: FactoredCritic
    critic_target: FactoredCritic
    objective: ActorObjective
    replay_buffer: ReplayBuffer
    log_ent_coef: Tensor
    ent_coef_optimizer: torch.optim.Optimizer | None
    ent_coef: str | float
    importance_exponent: float
    target_update_interval: int
    target_entropy: str | float
    reset_interval: int
    max_grad_norm: float | None
    cosine_interval: int
    _means: Means
    _latest: dict[str, float]

    @abstractmethod
    def critic_loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the critic's scalar loss on a batch, and its TD errors and targets `[M]`."""

    @abstractmethod
    def actor_loss(
        self, obs: PyTorchObs, temperature: float | Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the scalar loss of the actor and the entropies `[B, K]`."""

    def _setup_losses(self) -> None:
        # Listed once: a module looks for its parameters anew each time.
        self._averaged = [list(net.parameters()) for net in (self.critic_target, self.critic)]
        self._critic_loss, self._actor_loss = self.critic_loss, self.actor_loss
        optimizers = self._optimizers()
        self._fuses = (
            self.compile
            and self.target_update_interval == 1
            and all(is_traceable(optimizer) for optimizer in optimizers)
        )
        if self._fuses:
            self._steps = compiled(self.steps)
            # A tensor, since a compiled function would be compiled again for every number.
            self._learning_rate = torch.full((), self.lr_schedule(1), device=self.device)
        elif self.compile:
            self._critic_loss = compiled(self.critic_loss)
            self._actor_loss = compiled(self.actor_loss)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        every = (self.actor.optimizer, self.critic.optimizer, self.ent_coef_optimizer)
        return [optimizer for optimizer in every if optimizer is not None]

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Update critic, actor, entropy coefficient and target critic `gradient_steps` times.

        With `overlap` those right after a collection wait for the next one.
        """
        if self._deferred.take(gradient_steps):
            return
        self.policy.set_training_mode(True)
        learning_rate = self.lr_schedule(self._current_progress_remaining)
        if self._fuses:
            self._learning_rate.fill_(learning_rate)
        for optimizer in self._optimizers():
            rate = self._learning_rate if self._fuses else learning_rate
            update_learning_rate(optimizer, rate)  # type: ignore[arg-type]  # Adam takes either
        temperature = self.objective.temperature(self._current_progress_remaining)
        if self.priority_exponent and isinstance(self.replay_buffer, DeviceReplayBuffer):
            left = self._current_progress_remaining * (1 - self.importance_exponent)
            self.replay_buffer.importance_exponent = 1 - left
        if self._fuses:
            for start in range(0, gradient_steps, MAX_FUSED):
                count = min(MAX_FUSED, gradient_steps - start)
                self.update_together(batch_size, temperature, count)
        else:
            for _ in range(gradient_steps):
                self.update(batch_size, temperature)
        if len(self._updates) >= MAX_UNREAD:
            self._read_updates()
        self._latest = {"train/learning_rate": learning_rate, "estimator/temperature": temperature}

    def update(self, batch_size: int, temperature: float) -> None:
        """Update everything once, from a batch of the replay; take note of what is logged."""
        batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        obs, mask = batch.observations, getattr(batch, "action_masks", None)
        self._means.add(self.update_critic(batch))
        if self.objective.is_probe_due(self.critic, self._n_updates, self.cosine_interval):
            self._means.add(self.probe_estimator(obs, temperature, mask))
        self._means.add(self.update_actor(obs, temperature, mask))
        self._n_updates += 1
        if self._n_updates % self.target_update_interval == 0:
            self.update_target()
        if self.reset_interval and self._n_updates % self.reset_interval == 0:
            self.reset_networks()

    def update_together(self, batch_size: int, temperature: float, count: int) -> None:
        """Update everything `count` times in one call of what is compiled; as `update`.

        The gradient is measured, and networks start anew, between two calls.
        """
        batches = [
            self.replay_buffer.sample(batch_size, env=self._vec_normalize_env) for _ in range(count)
        ]
        numbers = range(self._n_updates, self._n_updates + count)
        if any(self.objective.is_probe_due(self.critic, n, self.cosine_interval) for n in numbers):
            obs, mask = batches[0].observations, getattr(batches[0], "action_masks", None)
            self._means.add(self.probe_estimator(obs, temperature, mask))
        scalar = torch.full((), temperature, device=self.device)
        for name, is_finite, metrics in self._steps(batches, scalar):
            self._note_update(name, is_finite)
            self._means.add(metrics)
        self._n_updates += count
        if self.reset_interval and self._n_updates % self.reset_interval < count:
            self.reset_networks()

    def steps(
        self, batches: list[Batch], temperature: Tensor
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """Take the steps of one update for each batch; return what `update` takes note of."""
        notes = []
        for batch in batches:
            notes.append(("critic", *self.step_critic(batch)))
            mask = getattr(batch, "action_masks", None)
            notes.append(("actor", *self.step_actor(batch.observations, temperature, mask)))
            self.update_target()
        return notes

    @torch.no_grad()  # theta' <- theta' + tau (theta - theta')
    def update_target(self) -> None:
        """Move the target critic towards the critic."""
        torch._foreach_lerp_(*self._averaged, self.tau)

    @torch.no_grad()  # values are set, not computed
    def reset_networks(self) -> None:
        """Start networks, optimisers and entropy coefficient anew, in the same tensors."""
        fresh = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        )
        self.policy.load_state_dict(fresh.to(self.device).state_dict())
        self.log_ent_coef.fill_(log_coefficient("ent_coef", self.ent_coef))
        for optimizer in self._optimizers():
            for state in optimizer.state.values():
                for moment in state.values():
                    if isinstance(moment, Tensor):  # the count of steps too
                        moment.zero_()

    @property
    def logger(self) -> Logger:
        """The logger, which first takes what the updates measured since it was asked for last.

        So the device is read when logs are written, and not after every update.
        """
        logger = super().logger
        if self._latest:
            logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            for name, value in self._latest.items():
                logger.record(name, value)
            self._latest = {}
            self._means.record(logger, {"train/skipped_updates": self.skipped_updates})
        return logger

    def update_critic(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step on the critic; return what is logged."""
        is_finite, metrics = self.step_critic(batch)
        self._note_update("critic", is_finite)
        return metrics

    def step_critic(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one step on the critic; return whether its gradient was finite, and the metrics."""
        loss, errors, target = self._critic_loss(batch)
        _, is_finite = descend(self.critic.optimizer, loss, self.max_grad_norm)
        if isinstance(batch, DeviceReplaySamples) and batch.positions is not None:
            assert isinstance(self.replay_buffer, DeviceReplayBuffer)
            self.replay_buffer.update_priorities(batch.positions, errors)
        metrics = {"train/critic_loss": loss.detach()}
        head = self.critic.network.head
        if head is not None:
            outside = (target < head.centers[0]) | (target > head.centers[-1])
            metrics["train/target_outside"] = outside.float().mean()
        return is_finite, metrics

    def update_actor(
        self, obs: PyTorchObs, temperature: float, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Take one step on the actor and the entropy coefficient; return what is logged.

        Args:
            obs: `[B, *O]`.
            temperature: of the estimator.
            mask: `[B, K, N]`, True where a category may be chosen; None if everything may.
        """
        # A compiled function would be compiled again for every number.
        scalar = torch.full((), temperature, device=self.device) if self.compile else temperature
        is_finite, metrics = self.step_actor(obs, scalar, mask)
        self._note_update("actor", is_finite)
        return metrics

    def step_actor(
        self, obs: PyTorchObs, temperature: float | Tensor, mask: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take the steps of `update_actor`; return whether they were taken, and the metrics."""
        loss, entropy = self._actor_loss(obs, temperature, mask)
        norm, is_finite = descend(self.actor.optimizer, loss, self.max_grad_norm)
        entropy = entropy.detach()  # the coefficient's loss must not reach the actor
        metrics = {
            "train/actor_loss": loss.detach(),
            "train/ent_coef": self.log_ent_coef.detach().exp().squeeze(0),
            "estimator/grad_norm": norm,
            **self.objective.entropy_metrics(entropy, mask),
        }
        if self.ent_coef_optimizer is not None:
            share = self.target_entropy / (self.layout.max_entropy or 1.0)
            surplus = (entropy - share * self.objective.max_entropy(mask)).sum(-1).mean()
            metrics["train/ent_coef_loss"] = (self.log_ent_coef.detach() * surplus).squeeze(0)
            gradient = surplus.expand(1).contiguous()  # of that loss, which is linear in it
            step_by(self.ent_coef_optimizer, [self.log_ent_coef], [gradient], is_finite)
        return is_finite, metrics

    def probe_estimator(
        self, obs: PyTorchObs, temperature: float, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return how near the actor's gradient is to the exact one, and how noisy."""
        return self.objective.probe(self.actor, self.critic, obs, mask, temperature)

    def _excluded_save_params(self) -> list[str]:
        built = ["_averaged", "_means", "_latest"]
        built += ["_critic_loss", "_actor_loss", "_steps", "_learning_rate", "_fuses"]
        return [*super()._excluded_save_params(), *built]
