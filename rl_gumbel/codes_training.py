"""The auxiliary loss of observation codes: before training, or beside any SB3 algorithm's own."""

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from numpy.typing import ArrayLike
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn

from rl_gumbel.codes import Codes
from rl_gumbel.extractors import preprocess
from rl_gumbel.logger import Means
from rl_gumbel.normalize import RunningMoments

UPDATES_PER_LOG = 100
"""Off-policy updates between two reads of what they measured."""


def find_codes(module: nn.Module) -> list[Codes]:
    """Return the code extractors within a policy, or the extractor itself, each once.

    Those of target networks are left out: their parameters follow by averaging.

    Raises:
        ValueError: if there is none to train, or the policy gives it values that its likelihood
            does not take.
    """
    found = [
        part
        for name, part in module.named_modules()
        if isinstance(part, Codes) and "_target." not in f"{name}."
    ]
    if not found:
        raise ValueError(
            f"{type(module).__name__} has no codes to train: pass features_extractor_class="
            f"GumbelCodes (or GaussianCodes) in policy_kwargs"
        )
    if found[0].is_frozen:
        raise ValueError(f"the {type(found[0]).__name__} of {type(module).__name__} are frozen")
    if found[0].likelihood == "bernoulli":
        _check_unit(module, found[0])
    return found


def _check_unit(module: nn.Module, codes: Codes) -> None:
    """Raise where the policy takes an observation space in [0, 1] out of there."""
    settings = {
        "normalize_observations True": getattr(module, "normalizer", None) is not None,
        "normalize_images False": is_image_space(codes._observation_space)
        and not getattr(module, "normalize_images", True),
    }
    for name, leaves in settings.items():
        if leaves:
            raise ValueError(
                f"{name} gives {type(codes).__name__} values outside [0, 1]; pass likelihood="
                f"'gaussian' in features_extractor_kwargs"
            )


def prepare(module: nn.Module, observations: Tensor, space: spaces.Space[Any]) -> Tensor:
    """Return observations as the policy, or an extractor alone, gives them to the encoder."""
    prepared = preprocess(observations, space, getattr(module, "normalize_images", True))
    assert isinstance(prepared, Tensor)  # as of every Box
    normalizer: RunningMoments | None = getattr(module, "normalizer", None)
    return prepared if normalizer is None else normalizer.normalize(prepared)


def update_codes(
    module: nn.Module,
    codes: Sequence[Codes],
    optimizer: torch.optim.Optimizer,
    observations: Tensor,
    means: Means,
) -> None:
    """Take one step on the loss of each of `codes`, which are within `module`.

    Args:
        module: a policy, or the extractor itself.
        codes: what `find_codes` returned.
        optimizer: of their parameters.
        observations: `[B, *O]` as the environment gives them.
        means: take in what is logged.
    """
    device = next(codes[0].parameters()).device
    batch = prepare(module, observations.to(device), codes[0]._observation_space)
    optimizer.zero_grad()
    for extractor in codes:
        before = extractor.training
        extractor.train()  # draws codes
        metrics = extractor.measure(batch)
        extractor.train(before)
        metrics["codes/loss"].backward()
        means.add({name: value.detach() for name, value in metrics.items()})  # for the log
    optimizer.step()
    optimizer.zero_grad()  # the policy's optimiser must not find these gradients


def pretrain_codes(
    module: Codes | BasePolicy,
    observations: ArrayLike | Tensor,
    *,
    num_updates: int = 2000,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    freeze: bool = False,
) -> None:
    """Train codes on observations before the policy learns; a schedule runs from end to end.

    Args:
        module: an extractor; or a policy, of whose extractors one is trained and the others, also
            those of target networks, become copies.
        observations: `[M, *O]` as the environment gives them, SB3's images channels-first.
        num_updates: steps of Adam.
        batch_size: observations in each, drawn with replacement.
        learning_rate: of Adam.
        freeze: leave the codes as they then are, whatever trains the policy.

    Raises:
        ValueError: for a module without codes or with frozen ones, observations of another shape,
            or a setting out of range.
    """
    _check_settings(num_updates=num_updates, batch_size=batch_size, learning_rate=learning_rate)
    first = find_codes(module)[0]
    shape = first._observation_space.shape
    data = torch.as_tensor(observations)
    if data.shape[1:] != shape or len(data) == 0:
        raise ValueError(f"observations have shape {tuple(data.shape)}; needed: [M, *{shape}]")
    optimizer = torch.optim.Adam(first.parameters(), learning_rate)
    for update in range(num_updates):
        first.set_progress(1 - update / num_updates)
        update_codes(module, [first], optimizer, draw(data, batch_size), Means())
    if freeze:
        first.freeze()
    for part in module.modules():
        if isinstance(part, Codes) and part is not first:
            part.load_state_dict(first.state_dict())


def draw(observations: Tensor, batch_size: int) -> Tensor:
    """Return `batch_size` of `[M, *O]` observations, drawn with replacement."""
    positions = torch.randint(len(observations), (batch_size,), device=observations.device)
    return observations.index_select(0, positions)


class CodesCallback(BaseCallback):
    """Train the codes of a policy on their own loss, beside any SB3 algorithm or one of ours.

    Their optimiser is its own; the policy's steps encoder and codebook too, unless
    `policy_gradient=False`. On-policy the codes learn from each rollout after the policy has, so
    that the policy that is updated is the one that acted (the last rollout is left out).
    Off-policy they learn from the replay after each `train_freq`, from `learning_starts` on. The
    temperature follows the algorithm's progress. The optimiser's moments are not saved.

    Logs `codes/*`, defined in `rl_gumbel.logger.TAGS`.

    Args:
        learning_rate: of Adam.
        batch_size: observations in each update.
        gradient_steps: updates after each rollout; None is as many as it has batches, one
            off-policy.

    Raises:
        ValueError: for a setting out of range, and when training starts, for a policy without
            codes or with frozen ones.
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        batch_size: int = 128,
        gradient_steps: int | None = None,
    ) -> None:
        super().__init__()
        _check_settings(learning_rate=learning_rate, batch_size=batch_size)
        if gradient_steps is not None:
            _check_settings(gradient_steps=gradient_steps)
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.gradient_steps = gradient_steps

    def _on_training_start(self) -> None:
        self.codes = find_codes(self.model.policy)
        parameters = [p for extractor in self.codes for p in extractor.parameters()]
        self.optimizer = torch.optim.Adam(parameters, self.learning_rate)
        self.is_off_policy = isinstance(self.model, OffPolicyAlgorithm)
        self.rollout: Tensor | None = None
        """`[M, *O]` observations of the last rollout, on-policy."""
        self.means = Means()
        self.num_unlogged = 0

    def _on_rollout_start(self) -> None:
        for extractor in self.codes:
            extractor.set_progress(self.model._current_progress_remaining)
        if self.is_off_policy:
            self._learn_from_replay()
        elif self.rollout is not None:
            for _ in range(self.gradient_steps or max(len(self.rollout) // self.batch_size, 1)):
                self._update(draw(self.rollout, self.batch_size))
        if self.num_unlogged >= (UPDATES_PER_LOG if self.is_off_policy else 1):
            self.means.record(self.logger)
            self.num_unlogged = 0

    def _learn_from_replay(self) -> None:
        model = self.model
        # The replay of a model that was loaded is empty, however many its steps.
        if model.num_timesteps > model.learning_starts and model.replay_buffer.size() > 0:
            for _ in range(self.gradient_steps or 1):
                replay = model.replay_buffer.sample(self.batch_size, env=model._vec_normalize_env)
                self._update(replay.observations)

    def _update(self, observations: Tensor) -> None:
        update_codes(self.model.policy, self.codes, self.optimizer, observations, self.means)
        self.num_unlogged += 1

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if not self.is_off_policy:
            rollout = getattr(self.model, "rollout", None)  # ours; SB3 has a buffer
            if rollout is None:
                observations = torch.as_tensor(self.model.rollout_buffer.observations)
            else:
                # A differentiable simulator's observations carry gradients of its own past.
                observations = rollout.obs[:-1].detach()
            self.rollout = observations.flatten(0, 1)


def _check_settings(**settings: float) -> None:
    """Raise for a setting that is not positive."""
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"{name} {value!r} must be > 0")
