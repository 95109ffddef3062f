"""The records that travel between modules, and the shape legend of the project.

Legend, used in every docstring:

- ``B`` environments or batch, ``T`` time, ``K`` action factors, ``N`` categories of the largest
  factor, ``O`` observation, ``E`` critics of an ensemble, ``F`` features, ``M`` Monte-Carlo
  samples.
- ``action``: the form the environment's space expects (a `Discrete` start honoured).
- ``index``: zero-based category of each factor, `[B, K]` int64.
- ``one_hot``: the vector form, `[B, K, N]`, padded with zeros where a factor has fewer than ``N``
  categories. ``logits``: unnormalised log-probabilities of the same shape.
- ``mask``: True where a category may be chosen, of the same shape; padding is always False.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """What an estimator returns.

    Only `one_hot` and `probs` carry a gradient to the logits.
    """

    index: Tensor
    """`[..., K]` int64: the sampled category of each factor."""
    one_hot: Tensor
    """`[..., K, N]`: the sample as a vector, in the dtype of the logits; exactly one-hot except for
    the relaxed estimators `gumbel_softmax` and `probabilities`."""
    probs: Tensor
    """`[..., K, N]`: the probabilities that `index` was drawn from."""


Obs = Tensor | dict[str, Tensor]
"""A batch of observations, `[B, *O]`, or one such tensor for each key of a `Dict` space."""


@dataclass(frozen=True)
class Step:
    """What a batched environment returns for one step of its B environments.

    An environment whose episode ended starts the next one in the same step: `obs` is then the first
    observation of that next episode, `final_obs` the last one of the episode that ended.
    """

    obs: Obs
    """`[B, *O]`: what the next action is chosen on."""
    reward: Tensor
    """`[B]` float32."""
    terminated: Tensor
    """`[B]` bool: the episode ended in a state that has no future."""
    truncated: Tensor
    """`[B]` bool: the episode was cut, by a time limit; never True where `terminated` is."""
    final_obs: Obs
    """`[B, *O]`: what the action led to; equals `obs` where no episode ended."""
    action_mask: Tensor | None
    """`[B, K, N]` bool: what may be chosen on `obs`; None if everything always may."""
    final_action_mask: Tensor | None
    """`[B, K, N]` bool: the same on `final_obs`."""
    episode_return: Tensor
    """`[B]` float32: sum of the rewards of the episode, this step's included."""
    episode_length: Tensor
    """`[B]` int64: its steps so far, this one included."""
    repaired: Tensor | None = None
    """`[B]` bool: where an infinity or NaN was replaced; None where none is."""

    @property
    def ended(self) -> Tensor:
        """`[B]` bool: terminated or truncated."""
        return self.terminated | self.truncated


@dataclass(frozen=True)
class Rollout:
    """T steps of B environments under one policy."""

    obs: Obs
    """`[T + 1, B, *O]`: what each action was chosen on, and what follows the last one."""
    action_mask: Tensor | None
    """`[T + 1, B, K, N]` bool: what could be chosen on `obs`; None if everything always could."""
    index: Tensor
    """`[T, B, K]` int64: the categories that were chosen."""
    reward: Tensor
    """`[T, B]` float32."""
    terminated: Tensor
    """`[T, B]` bool."""
    truncated: Tensor
    """`[T, B]` bool."""
    truncated_obs: Obs
    """`[R, B, *O]`: the last observations of truncated episodes. Row r belongs to the r-th window
    of `truncation_interval` steps, in which an environment is truncated once at most."""
    truncated_mask: Tensor | None
    """`[R, B, K, N]` bool: what could be chosen there."""
    episode_return: Tensor
    """`[T, B]` float32: sum of the rewards of the episode up to each step."""
    episode_length: Tensor
    """`[T, B]` int64: the episode's steps up to each."""
    truncation_interval: int | None
    """That of the environment; R is T divided by it, rounded up, and 0 if it is None."""

    @property
    def ended(self) -> Tensor:
        """`[T, B]` bool: terminated or truncated."""
        return self.terminated | self.truncated
