"""Networks for K alike units, one action factor each: the same weights for every unit.

The observation is K equal parts, unit by unit. What a layer returns for a unit depends on its part
and on the mean over all parts (Zaheer et al. 2017, "Deep Sets", arXiv 1703.06114, eq. 4), so that
units may be exchanged and each step of training is a lesson from all of them.
"""

import itertools

import torch
from torch import Tensor, nn

from rl_gumbel.actions import ActionLayout
from rl_gumbel.networks import CategoricalHead, EnsembleLayerNorm, EnsembleLinear


def count_part(num_features: int, layout: ActionLayout) -> int:
    """Return the numbers P in the part of one unit.

    Raises:
        ValueError: if there is one factor, factors differ in size, or parts would not be equal.
    """
    if layout.num_factors < 2 or len(set(layout.sizes)) > 1:
        raise ValueError(
            f"shared_factors needs two or more factors of one size; {layout.space} has not"
        )
    if num_features % layout.num_factors:
        raise ValueError(
            f"shared_factors needs an observation of {layout.num_factors} equal parts, one for "
            f"each factor; it has {num_features} numbers"
        )
    return num_features // layout.num_factors


class EquivariantLayer(nn.Module):
    """E independent layers over K parts: own part and mean of all, `[E, B * K, in]` to `out`."""

    def __init__(self, num_members: int, num_parts: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.num_parts = num_parts
        self.own = EnsembleLinear(num_members, width_in, width_out)
        self.everyone = EnsembleLinear(num_members, width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[E, B * K, out]`."""
        mean = self.everyone(x.unflatten(1, (-1, self.num_parts)).mean(2))
        return self.own(x) + mean.unsqueeze(2).expand(-1, -1, self.num_parts, -1).flatten(1, 2)


class EquivariantTorso(nn.Module):
    """Hidden layers of E perceptrons over K parts, `[B, K * P]` to `[E, B, K, H]`.

    Args:
        num_members: E.
        num_parts: K.
        widths: P and the widths of the layers, the last of which is H.
        activation_fn: of every layer.
        use_layer_norm: normalise every layer.
        dropout: probability of a hidden unit to be dropped in training.
    """

    def __init__(
        self,
        num_members: int,
        num_parts: int,
        widths: list[int],
        activation_fn: type[nn.Module],
        use_layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_members = num_members
        self.num_parts = num_parts
        self.width_in = widths[0]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers.append(EquivariantLayer(num_members, num_parts, width_in, width_out))
            if dropout:
                layers.append(nn.Dropout(dropout))
            if use_layer_norm:
                layers.append(EnsembleLayerNorm(num_members, width_out))
            layers.append(activation_fn())
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Return `[E, B, K, H]`."""
        x = features.reshape(-1, self.width_in).expand(self.num_members, -1, -1)
        hidden: Tensor = self.layers(x)
        return hidden.unflatten(1, (-1, self.num_parts))


class EquivariantLogitNetwork(nn.Module):
    """Features `[B, K * P]` to logits `[B, K, N]`, as `LogitNetwork`."""

    mask = None
    """Factors are of one size: nothing is padded."""

    def __init__(
        self,
        num_features: int,
        layout: ActionLayout,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        widths = [count_part(num_features, layout), *net_arch]
        self.torso = EquivariantTorso(1, layout.num_factors, widths, activation_fn)
        self.output = nn.Linear(widths[-1], layout.num_categories)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits `[B, K, N]`."""
        logits: Tensor = self.output(self.torso(features).squeeze(0))
        return logits


class EquivariantValueNetwork(nn.Module):
    """Features `[B, K * P]` to values `[B, 1]`: the mean of the units' values."""

    def __init__(
        self,
        num_features: int,
        layout: ActionLayout,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.SiLU,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        widths = [count_part(num_features, layout), *net_arch]
        self.torso = EquivariantTorso(1, layout.num_factors, widths, activation_fn, layer_norm)
        self.output = nn.Linear(widths[-1], 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return values `[B, 1]`."""
        values: Tensor = self.output(self.torso(features).squeeze(0).mean(1))
        return values


class EquivariantCritic(nn.Module):
    """Q(features, one_hot) by E perceptrons: the mean of the units' values of part and action.

    As `ConcatCritic` with its action at the first layer.

    Raises:
        ValueError: for a distribution over returns.
    """

    is_multilinear = False
    head = None
    """Its value is one number."""

    def __init__(
        self,
        num_features: int,
        layout: ActionLayout,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.SiLU,
        n_critics: int = 2,
        layer_norm: bool = True,
        head: CategoricalHead | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if head is not None:
            raise ValueError(
                f"num_bins {head.num_bins!r} is not for shared_factors: its critic's value is one "
                f"number"
            )
        self.layout = layout
        self.n_critics = n_critics
        width = count_part(num_features, layout) + layout.num_categories
        widths = [width, *net_arch]
        self.torso = EquivariantTorso(
            n_critics, layout.num_factors, widths, activation_fn, layer_norm, dropout
        )
        self.output = EnsembleLinear(n_critics, widths[-1], 1)

    def forward(self, features: Tensor, one_hot: Tensor) -> Tensor:
        """Return `[E, B]` values of features `[B, K * P]` and actions `[B, K, N]`."""
        parts = features.unflatten(-1, (self.layout.num_factors, -1))
        hidden = self.torso(torch.cat([parts, one_hot], -1))
        values: Tensor = self.output(hidden.mean(2))
        return values.squeeze(-1)

    def actor_value(self, features: Tensor, one_hot: Tensor, use_mean: bool = False) -> Tensor:
        """Return the `[B]` value that the actor climbs: the ensemble's minimum, or its mean."""
        values: Tensor = self(features, one_hot)
        return values.mean(0) if use_mean else values.amin(0)
