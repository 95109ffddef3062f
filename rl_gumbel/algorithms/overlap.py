"""Gradient steps while environments step: deferred after a collection, made during the next."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rl_gumbel.algorithms.off_policy import BatchedOffPolicyAlgorithm
from rl_gumbel.vec_env import SB3VecEnv
from rl_gumbel.vec_env.host import HostEnv


class DeferredUpdates:
    """Gradient steps that wait for the environments to step; a call makes the share of one step.

    Args:
        update: makes so many.
    """

    def __init__(self, update: Callable[[int], None]) -> None:
        self.update = update
        self.owed = 0
        """How many wait."""
        self.takes_next = False
        """Whether those that come next shall wait too."""
        self._steps_left = 0

    def take(self, count: int) -> bool:
        """Let so many wait, if they shall; return whether they do."""
        if self.takes_next:
            self.owed, self.takes_next = count, False
            return True
        return False

    def spread(self, num_steps: int) -> None:
        """Share out what waits over so many steps; 0 makes none, as in steps of somebody else."""
        self._steps_left, self.takes_next = num_steps, False

    def __call__(self) -> None:
        """Make the share of one step: as many as of each to come, or one more."""
        if self.owed and self._steps_left:
            count = -(-self.owed // self._steps_left)  # rounded up
            self._steps_left -= 1
            self.owed -= count
            self.update(count)


class MeanwhileVecEnv(VecEnvWrapper):
    """Environments of SB3, of which each step calls a function once the actions are sent.

    Args:
        venv: the environments.
        meanwhile: the function.
    """

    def __init__(self, venv: VecEnv, meanwhile: Callable[[], None]) -> None:
        super().__init__(venv)
        self.meanwhile = meanwhile

    def reset(self) -> VecEnvObs:
        """Start an episode in every environment."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Call the function, then return the step."""
        try:
            self.meanwhile()
        finally:  # whatever it raises, no step is left under way
            result = self.venv.step_wait()
        return result


class OverlappingAlgorithm(BatchedOffPolicyAlgorithm):
    """An off-policy algorithm that can update while its environments step.

    The `train` of a subclass first asks `_deferred.take`, and does nothing where that says True.
    """

    loop_state: ClassVar[tuple[str, ...]] = (
        *BatchedOffPolicyAlgorithm.loop_state,
        "_deferred.owed",
    )
    overlap: bool = False
    """Whether it does; see `GumbelSAC`."""

    def _check_overlap(self) -> None:
        """Raise a `ValueError` for environments during whose steps nothing else can run."""
        if self.overlap and isinstance(self.env, SB3VecEnv):
            env = self.env.batched
            if not isinstance(env, HostEnv):
                raise ValueError(
                    f"overlap True would be ignored: {type(env).__name__} steps in this process, "
                    f"on the device of the updates; it is for environments of Gymnasium or SB3 in "
                    f"processes of their own"
                )

    def _setup_model(self) -> None:
        self._check_overlap()
        self._deferred = DeferredUpdates(self._update_meanwhile)
        super()._setup_model()

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._check_overlap()  # again: the environments may be others now
        result = super()._setup_learn(*args, **kwargs)
        if self.overlap and self.is_batched:
            assert isinstance(self.batched, HostEnv)
            self.batched.meanwhile = self._deferred
        elif self.overlap:
            assert self.env is not None
            self._own_env = MeanwhileVecEnv(self.env, self._deferred)
        return result

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        *args: Any,
        **kwargs: Any,
    ) -> RolloutReturn:
        """Store `train_freq` steps of every environment in the replay; as SB3's.

        With `overlap` the updates after the collection before this one are made meanwhile.
        """
        if self.overlap and not self.is_batched:
            env = self._own_env
        in_steps = train_freq.unit is TrainFrequencyUnit.STEP
        self._deferred.spread(train_freq.frequency if in_steps else 1)
        try:
            rollout = super().collect_rollouts(env, callback, train_freq, *args, **kwargs)
            self._deferred.spread(1)  # what is left where a callback ended it
            self._deferred()
        finally:
            self._deferred.spread(0)
        is_last = self.num_timesteps >= self._total_timesteps or not rollout.continue_training
        self._deferred.takes_next = self.overlap and not is_last
        return rollout

    @torch.enable_grad()  # which the steps themselves do without
    def _update_meanwhile(self, gradient_steps: int) -> None:
        self.train(gradient_steps, self.batch_size)
        self.policy.set_training_mode(False)  # it acts next

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_deferred", "_own_env"]
