"""Networks from features to logits and to action values; ensembles in one batched matmul."""

import itertools
import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from rl_gumbel.actions import ActionLayout
from rl_gumbel.affine import Linear, affine, product


class TanhLayers(nn.Sequential):
    """Linear layers, each followed by tanh; on the CPU layer and tanh are one faster function.

    Args:
        *layers: `nn.Linear` and `nn.Tanh` in turn.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out]` of `[B, in]`."""
        if x.device.type != "cpu":
            y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return y
        for linear in list(self)[::2]:
            x = _LinearTanh.apply(x, linear.weight, linear.bias)  # type: ignore[no-untyped-call]
        return x


class _LinearTanh(torch.autograd.Function):
    """tanh(x W' + b) as 2 sigmoid(2 (x W' + b)) - 1, equal to 1e-7.

    PyTorch takes tanh from a vector library that is up to six times slower on processors of other
    makers. Doubling the weights and writing in place save three passes over the result.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = product(x, 2 * weight.t(), 2 * bias).sigmoid_()
        torch.add(y.new_full((), -1.0), y, alpha=2, out=y)
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight, y = ctx.saved_tensors
        grad = torch.ops.aten.tanh_backward(grad, y)
        # A product whose first factor has few rows is up to seven times slower than its transpose.
        is_narrow = x.shape[1] < grad.shape[1]
        grad_weight = (x.t() @ grad).t() if is_narrow else product(grad.t(), x)
        grad_x = product(grad, weight) if ctx.needs_input_grad[0] else None
        return grad_x, grad_weight, grad.sum(0)


def perceptron(
    widths: list[int], activation_fn: type[nn.Module], use_layer_norm: bool = False
) -> nn.Sequential:
    """Return layers from the first width to the last; all but the last layer are activated."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths[:-1]):
        layers.append(Linear(width_in, width_out))
        if use_layer_norm:
            layers.append(nn.LayerNorm(width_out))
        layers.append(activation_fn())
    return nn.Sequential(*layers, Linear(widths[-2], widths[-1]))


class LogitNetwork(nn.Module):
    """Features `[B, F]` to logits `[B, K, N]`; the logits of padding are zero, see `mask`."""

    mask: Tensor | None
    """`[K, N]` bool, False where a factor has no such category; None if nothing is padded."""

    def __init__(
        self,
        num_features: int,
        layout: ActionLayout,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.layers = perceptron([num_features, *net_arch, layout.num_flat], activation_fn)
        self.register_buffer("mask", layout.mask, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits `[B, K, N]`."""
        return self.layout.unflatten(self.layers(features))


class EnsembleLinear(nn.Module):
    """E independent linear layers, `[E, B, in]` to `[E, B, out]`."""

    def __init__(self, num_members: int, width_in: int, width_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width_in)  # as torch.nn.Linear
        self.weight = nn.Parameter(torch.empty(num_members, width_in, width_out))
        self.bias = nn.Parameter(torch.empty(num_members, 1, width_out))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[E, B, out]`."""
        if self.weight.shape[-1] == 1:  # a product with one column is up to eight times slower
            return (x * self.weight.mT).sum(-1, keepdim=True) + self.bias
        return affine(x, self.weight, self.bias)


class EnsembleLayerNorm(nn.Module):
    """Layer normalisation with separate weights for each of E members."""

    def __init__(self, num_members: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_members, 1, width))
        self.bias = nn.Parameter(torch.zeros(num_members, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[E, B, width]`, each row with zero mean and unit variance before the weights."""
        return torch.addcmul(self.bias, layer_norm(x, x.shape[-1:]), self.weight)


def hl_gauss(value: Tensor, centers: Tensor) -> Tensor:
    """Return the `[..., bins]` histogram of a normal distribution about each value `[...]`.

    Imani & White 2018 (arXiv 1806.04613), section 3, with a standard deviation of 0.75 bins as in
    Farebrother et al. 2024 (arXiv 2403.03950), section 3.1. A value outside the outermost of the
    evenly spaced `centers` `[bins]` counts as the nearest of these.
    """
    width = centers[1] - centers[0]
    edges = torch.cat([centers - width / 2, centers[-1:] + width / 2])
    value = value.clamp(centers[0], centers[-1]).unsqueeze(-1)
    below: Tensor = torch.special.ndtr((edges - value) / (0.75 * width))
    # What lies beyond the outer edges is shared out among the bins.
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


class CategoricalHead(nn.Module):
    """Logits over bins of return to the value that they mean, as the critics' last step.

    Args:
        num_bins: at least 2.
        value_range: centers of the first and the last bin; returns outside are clipped to it.

    Raises:
        ValueError: for fewer than 2 bins or a range that is not two finite, increasing numbers.
    """

    centers: Tensor
    """`[bins]` returns that the bins stand for."""

    def __init__(self, num_bins: int, value_range: Sequence[float]) -> None:
        super().__init__()
        if not isinstance(num_bins, Integral) or num_bins < 2:
            raise ValueError(f"num_bins {num_bins!r} must be an integer >= 2")
        try:
            low, high = map(float, value_range)
        except (TypeError, ValueError):  # of another kind or length
            low = high = math.nan
        if not -math.inf < low < high < math.inf:
            raise ValueError(
                f"value_range {value_range!r} must be two numbers, finite and increasing"
            )
        self.num_bins: int = num_bins
        self.register_buffer("centers", torch.linspace(low, high, num_bins), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the `[...]` means of the distributions with logits `[..., bins]`."""
        return (logits.softmax(-1) * self.centers).sum(-1)

    def start_at_zero(self, layer: EnsembleLinear) -> None:
        """Make the layer that emits the logits start near the distribution that stands for 0.

        Uniform logits would start at the middle of the range, and with a slope as long as it.
        """
        zero = hl_gauss(self.centers.new_zeros(()), self.centers)
        bias = zero.clamp_min(1e-6).log()  # a bin that starts at exactly zero would never learn
        with torch.no_grad():  # an initial value
            layer.bias.copy_(bias.repeat(layer.bias.shape[-1] // self.num_bins))


def hidden_layers(
    num_members: int,
    widths: list[int],
    activation_fn: type[nn.Module],
    use_layer_norm: bool,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return the hidden layers of E perceptrons, `[E, B, widths[0]]` to `[E, B, widths[-1]]`."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers.append(EnsembleLinear(num_members, width_in, width_out))
        if dropout:
            layers.append(nn.Dropout(dropout))
        if use_layer_norm:
            layers.append(EnsembleLayerNorm(num_members, width_out))
        layers.append(activation_fn())
    return nn.Sequential(*layers)


ACTION_LAYERS = ("last", "first")
"""Hidden layers of `ConcatCritic` at which the action may enter."""


class ConcatCritic(nn.Module):
    """Q(features, one_hot) by E perceptrons that take the action in at their last or first layer.

    `last` hidden layer, as in DDPG (Lillicrap et al. 2016, arXiv 1509.02971, section 7), and
    because a straight-through gradient reads the critic's slope at the corners of the simplex,
    which no data constrains: the fewer nonlinear layers lie behind the action, the closer that
    slope is to the difference between two actions. For the same reason only the layers before the
    action are normalised. `first`, with all layers normalised, is for many factors: the value of
    each then depends on the state in its own way, which one layer cannot hold. With a `head` the
    value is the mean of a distribution over bins, else one number.

    Raises:
        ValueError: for another `action_layer`.
    """

    is_multilinear = False

    def __init__(
        self,
        num_features: int,
        layout: ActionLayout,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.SiLU,
        n_critics: int = 2,
        layer_norm: bool = True,
        action_layer: str = "last",
        head: CategoricalHead | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if action_layer not in ACTION_LAYERS:
            raise ValueError(f"action_layer {action_layer!r} must be one of {ACTION_LAYERS}")
        self.layout = layout
        self.n_critics = n_critics
        self.head = head
        before, behind = net_arch[:-1], net_arch[-1:]
        if action_layer == "first":
            before, behind = [], net_arch
        widths = [num_features, *before]
        self.trunk = hidden_layers(n_critics, widths, activation_fn, layer_norm, dropout)
        joined = [widths[-1] + layout.num_flat, *behind]
        normalise_tail = layer_norm and action_layer == "first"
        self.tail = hidden_layers(n_critics, joined, activation_fn, normalise_tail, dropout)
        self.output = EnsembleLinear(n_critics, joined[-1], head.num_bins if head else 1)
        if head is not None:
            head.start_at_zero(self.output)

    def forward(self, features: Tensor, one_hot: Tensor) -> Tensor:
        """Return `[E, B]` values of features `[B, F]` and actions `[B, K, N]`."""
        output = self.logits(features, one_hot)
        return output.squeeze(-1) if self.head is None else self.head(output)

    def logits(self, features: Tensor, one_hot: Tensor) -> Tensor:
        """Return `[E, B, bins]` logits over the bins of the head."""
        hidden = self.trunk(features.expand(self.n_critics, -1, -1))
        action = self.layout.flatten(one_hot).expand(self.n_critics, -1, -1)
        output: Tensor = self.output(self.tail(torch.cat([hidden, action], -1)))
        return output

    def actor_value(self, features: Tensor, one_hot: Tensor, use_mean: bool = False) -> Tensor:
        """Return the `[B]` value that the actor climbs: the ensemble's minimum, or its mean."""
        values: Tensor = self(features, one_hot)
        return values.mean(0) if use_mean else values.amin(0)


class MultilinearCritic(nn.Module):
    """Q(features, one_hot), linear in the one-hot of each factor.

    Q = sum_k <q_k, a_k> + sum_r w_r prod_k <1 + u_rk / K, a_k>, with q, u and w functions of the
    features: a low-rank tensor over the joint actions. For one factor the second term is left out
    and the critic is a Q-vector. Plain straight-through at temperature 1 is unbiased through it.
    With a `head`, for one factor only, each entry of the Q-vector is the mean of a distribution
    over bins.

    Raises:
        ValueError: for a head with several factors: the mean over bins is not linear in them.
    """

    is_multilinear = True

    def __init__(
        self,
        num_features: int,
        layout: ActionLayout,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.SiLU,
        n_critics: int = 2,
        layer_norm: bool = True,
        rank: int = 8,
        head: CategoricalHead | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if head is not None and layout.num_factors > 1:
            raise ValueError(
                f"critic 'multilinear' cannot have bins for the {layout.num_factors} factors of "
                f"{layout.space}: it would not be linear in each; use 'concat' or no bins"
            )
        self.layout = layout
        self.n_critics = n_critics
        self.head = head
        self.rank = rank if layout.num_factors > 1 else 0
        width_out = layout.num_flat * (1 + self.rank) + self.rank
        if head is not None:
            width_out = layout.num_flat * head.num_bins
        widths = [num_features, *net_arch]
        self.trunk = hidden_layers(n_critics, widths, activation_fn, layer_norm, dropout)
        self.output = EnsembleLinear(n_critics, widths[-1], width_out)
        if head is not None:
            head.start_at_zero(self.output)

    def forward(self, features: Tensor, one_hot: Tensor) -> Tensor:
        """Return `[E, B]` values of features `[B, F]` and actions `[B, K, N]`.

        Given probabilities instead of one-hots it returns the exact expectation over the product
        of the factors.
        """
        return self._contract(self._coefficients(features), one_hot)

    def actor_value(self, features: Tensor, one_hot: Tensor, use_mean: bool = False) -> Tensor:
        """Return the `[B]` value that the actor climbs, linear in each factor.

        A minimum over the ensemble would break the linearity: for one factor it is taken of the
        Q-vectors before the product, for several the ensemble's mean is used instead.
        """
        coefficients = self._coefficients(features)
        if self.layout.num_factors == 1 and not use_mean:
            return self._contract(coefficients.amin(0), one_hot)
        return self._contract(coefficients, one_hot).mean(0)

    def logits(self, features: Tensor, one_hot: Tensor) -> Tensor:
        """Return `[E, B, bins]` logits over the bins of the head."""
        return (self._output(features) * self.layout.flatten(one_hot).unsqueeze(-1)).sum(-2)

    def _coefficients(self, features: Tensor) -> Tensor:
        coefficients = self._output(features)
        if self.head is not None:
            coefficients = self.head(coefficients)
        return coefficients

    def _output(self, features: Tensor) -> Tensor:
        hidden = self.trunk(features.expand(self.n_critics, -1, -1))
        output: Tensor = self.output(hidden)  # [E, B, flat * (1 + rank) + rank]
        if self.head is not None:
            output = output.unflatten(-1, (self.layout.num_flat, self.head.num_bins))
        return output

    def _contract(self, coefficients: Tensor, one_hot: Tensor) -> Tensor:
        flat = self.layout.num_flat
        additive = (coefficients[..., :flat] * self.layout.flatten(one_hot)).sum(-1)
        if self.rank == 0:
            return additive
        tensor = coefficients[..., flat : -self.rank].unflatten(-1, (self.rank, flat))
        factors = self.layout.unflatten(tensor)  # [E, B, rank, K, N]
        num_factors = self.layout.num_factors
        # Divided by K so that the product stays near exp(mean) however many factors there are.
        products = ((1 + factors / num_factors) * one_hot.unsqueeze(-3)).sum(-1).prod(-1)
        return additive + (coefficients[..., -self.rank :] * products).sum(-1)


CRITICS: dict[str, type[ConcatCritic] | type[MultilinearCritic]] = {
    "concat": ConcatCritic,
    "multilinear": MultilinearCritic,
}
"""Every critic by name."""
