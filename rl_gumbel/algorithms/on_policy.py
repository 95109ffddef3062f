"""The on-policy loop of SB3 with rollouts that stay on the device."""

from typing import Any, ClassVar

from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from rl_gumbel.actions import ActionLayout
from rl_gumbel.algorithms.batched import BatchedAlgorithm
from rl_gumbel.algorithms.compilation import compile_steps
from rl_gumbel.algorithms.numbers import record_of
from rl_gumbel.rollout import OnStep, collect
from rl_gumbel.types import Obs, Rollout, Step


class BatchedOnPolicyAlgorithm(BatchedAlgorithm, OnPolicyAlgorithm):
    """SB3's `OnPolicyAlgorithm` whose rollouts are tensors on the device.

    A subclass writes `train`, which consumes `rollout`; its policy has `act(obs, mask)`, which
    returns sampled categories `[B, K]`.
    """

    loop_state: ClassVar[tuple[str, ...]] = (*BatchedAlgorithm.loop_state, "iterations")
    iterations: int = 0
    """Rollouts so far."""
    rollout: Rollout
    """What `train` learns from."""
    compile: bool = False
    """Whether acting, and what else the subclass says, is compiled."""

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._setup_checks()
        self.layout = ActionLayout.from_space(self.action_space)
        self.rollout_buffer = None  # the rollout takes its place
        self.policy = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        ).to(self.device)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        result = super()._setup_learn(*args, **kwargs)
        self.iterations = 0
        if self.compile:
            compile_steps(self.batched)
        return result

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer | None,
        n_rollout_steps: int,
    ) -> bool:
        """Fill `rollout`; return False if a callback ends the training."""
        self.policy.set_training_mode(False)
        callback.on_rollout_start()

        def on_step(step: Step) -> bool:
            return self._show_step(callback, step)

        collected = self.collect(n_rollout_steps, on_step)
        if collected is None:
            return False
        self.rollout, self._obs = collected
        rollout = self.rollout
        self._record_episodes(
            rollout.ended, rollout.episode_return, rollout.episode_length, record_of(rollout)
        )
        callback.on_rollout_end()
        self.iterations += 1
        return True

    def dump_logs(self, iteration: int = 0) -> None:
        """Write the log, as SB3 does, which only counts the rollouts of this process."""
        super().dump_logs(self.iterations)

    def collect(self, num_steps: int, on_step: OnStep) -> tuple[Rollout, Obs] | None:
        """Return steps of every environment and what they go on from; None if `on_step` ends it."""
        assert self._obs is not None
        return collect(self.batched, self.policy.act, self._obs, num_steps, on_step)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "rollout", "layout"]
