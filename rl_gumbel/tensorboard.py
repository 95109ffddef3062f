"""What TensorBoard shows beside scalars: a layout, the settings, and the policy as it changes."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.metadata import create_summary_metadata
from tensorboard.util.tensor_util import make_tensor_proto
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from rl_gumbel.buffers import DeviceReplayBuffer
from rl_gumbel.callbacks import MarkCallback
from rl_gumbel.types import Obs

LAYOUT = {
    "Return": {
        "training, mean of the last 100 episodes": ["Multiline", ["rollout/ep_rew_mean"]],
        "evaluation, argmax actions": ["Multiline", ["eval/mean_reward"]],
        "episode length": ["Multiline", ["rollout/ep_len_mean", "eval/mean_ep_length"]],
    },
    "Losses": {
        "actor": ["Multiline", ["train/actor_loss", "train/policy_gradient_loss"]],
        "critic": ["Multiline", ["train/critic_loss", "train/value_loss"]],
        "divergence": ["Multiline", ["train/approx_kl", "train/kl"]],
        "coefficients": ["Multiline", ["train/ent_coef", "train/kl_coef"]],
    },
    "Estimator health": {
        "cosine with the enumerated gradient": ["Multiline", ["estimator/cosine"]],
        "entropy, fraction of the maximum": ["Multiline", ["estimator/entropy"]],
        "norm of the actor's gradient": ["Multiline", ["estimator/grad_norm"]],
        "temperature": ["Multiline", ["estimator/temperature"]],
    },
}
"""Category to chart to tags, for the dashboard "Custom scalars"."""
METRICS = ("rollout/ep_rew_mean", "eval/mean_reward", "eval/mean_ep_length", "time/fps")
"""Whose last values stand beside the settings in the dashboard "HParams"."""
ENTROPY, ACTIONS = "policy/entropy_per_factor", "actions/factor_"
"""Names of histograms; a factor's number follows the second."""
MAX_FACTORS = 64
"""Factors whose actions are shown."""
SNAPSHOTS = 100
"""Of the policy in a training run."""
STATES = 512
"""Recent states, about, that a snapshot is a mean over."""


def find_writer(logger: Logger) -> SummaryWriter | None:
    """Return what writes the event file of a logger, or None if it has none."""
    formats = [f for f in logger.output_formats if isinstance(f, TensorBoardOutputFormat)]
    return formats[0].writer if formats else None


class TensorBoardCallback(MarkCallback):
    """Write the layout, the settings, and snapshots of the policy; nothing without TensorBoard.

    A snapshot is taken at the first rollout that ends after each hundredth of training, and at the
    end: in recent states the mean probability of each category, a histogram for each factor whose
    heights are the probabilities; and the entropy of each factor as a fraction of the maximum, a
    histogram whose heights are the entropies by factor. Both are exact, no random number is drawn.

    Args:
        settings: of the run by name: numbers, texts, None.
        texts: title to Markdown.
    """

    def __init__(self, settings: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        super().__init__()
        self.settings = settings
        self.texts = texts

    def _on_training_start(self) -> None:
        self.writer = find_writer(self.logger)
        self._next = self.num_timesteps
        if self.writer is None:
            return
        self.writer.add_custom_scalars(LAYOUT)
        for title, text in self.texts.items():
            self.writer.add_text(title, text, self.num_timesteps)
        values = {name: _as_hparam(value) for name, value in self.settings.items()}
        experiment, start, self._end = hparams(values, dict.fromkeys(METRICS, 0.0))
        for summary in (experiment, start):
            self.writer._get_file_writer().add_summary(summary)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.writer is not None and self.num_timesteps >= self._next:
            self._next = self.num_timesteps + self.model._total_timesteps // SNAPSHOTS
            self._record_policy()

    def _on_training_end(self) -> None:
        if self.writer is not None:
            self._record_policy()
            self.writer._get_file_writer().add_summary(self._end)
            self.writer.flush()

    def _record_policy(self) -> None:
        seen = recent_states(self.model, STATES)
        if seen is None or self.writer is None:
            return
        policy: Any = self.model.policy
        probs, entropy = describe_policy(policy, *seen)
        add_heights(self.writer, ENTROPY, entropy, self.num_timesteps)
        for k, size in enumerate(policy.layout.sizes[:MAX_FACTORS]):
            add_heights(self.writer, f"{ACTIONS}{k:02d}", probs[k, :size], self.num_timesteps)


def _as_hparam(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else str(value)


@torch.no_grad()  # nothing is learned here
def describe_policy(
    policy: Any, obs: Obs, mask: Tensor | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean probabilities `[K, N]` and entropies `[K]` as fractions of what masks allow."""
    distribution = policy.distribution(obs, mask)
    allowed = policy.layout.valid.to(policy.device) if mask is None else mask
    most = allowed.sum(-1).log().expand_as(distribution.entropy_per_factor()).mean(0)
    entropy = distribution.entropy_per_factor().mean(0)
    share = torch.where(most > 0, entropy / most, 0.0)
    return distribution.probs.mean(0).cpu().numpy(), share.cpu().numpy()


def recent_states(model: BaseAlgorithm, count: int) -> tuple[Obs, Tensor | None] | None:
    """Return about `count` of the latest observations `[M, *O]` and masks `[M, K, N]` or None.

    They are those of the rollout or the replay; None as long as there are none.
    """
    rollout = getattr(model, "rollout", None)
    if rollout is not None:
        rows = min(len(rollout.index), -(-count // model.n_envs))

        def latest(part: Tensor) -> Tensor:
            return part[-1 - rows : -1].detach().flatten(0, 1)[:count]  # for show, not to learn

        mask = rollout.action_mask
        return tree_map(latest, rollout.obs), None if mask is None else latest(mask)
    buffer: Any = getattr(model, "replay_buffer", None)
    if buffer is None or buffer.size() == 0:
        return None
    rows = min(buffer.size(), -(-count // model.n_envs))
    if isinstance(buffer, DeviceReplayBuffer):
        last = torch.arange(buffer.pos - rows, buffer.pos, device=buffer.device)
        places = (last % buffer.buffer_size)[:, None] * model.n_envs
        places = (places + torch.arange(model.n_envs, device=buffer.device)).flatten()[:count]
        mask = buffer._gather("mask", places) if buffer.has_masks else None
        return buffer._gather_obs("obs", places), mask
    last = np.arange(buffer.pos - rows, buffer.pos) % buffer.buffer_size
    return tree_map(
        lambda part: buffer.to_torch(part[last]).flatten(0, 1)[:count], buffer.observations
    ), None


def add_heights(writer: SummaryWriter, tag: str, heights: NDArray[Any], step: int) -> None:
    """Write a histogram with a bin of width 1 around each of 0, 1, ... and a height for each."""
    edges = np.arange(len(heights) + 1) - 0.5
    bins = np.stack([edges[:-1], edges[1:], heights], 1).astype(np.float32)
    # TensorBoard's present format; in the older one of `add_histogram` empty bins may be lost.
    metadata = create_summary_metadata(tag, "")
    value = Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto(bins))
    writer._get_file_writer().add_summary(Summary(value=[value]), step)


def add_image(writer: SummaryWriter, tag: str, encoded: bytes, step: int) -> None:
    """Write a PNG or GIF file as it is."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as picture:
        width, height = picture.size
    image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=encoded)
    summary = Summary(value=[Summary.Value(tag=tag, image=image)])
    writer._get_file_writer().add_summary(summary, step)
