"""The records that travel between modules, and the shape legend of the project.

Legend, used in every docstring:

- ``B`` environments or batch, ``K`` action factors, ``N`` categories of the largest factor,
  ``E`` critics of an ensemble, ``F`` features, ``M`` Monte-Carlo samples.
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
