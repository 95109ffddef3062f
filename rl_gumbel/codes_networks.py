"""Encoder and decoder of the codes: convolutions for images, else perceptrons."""

from itertools import pairwise

import numpy as np
import torch
from torch import nn

CONV_WIDTH = 32
SMALLEST_MAP = 5
"""Rows or columns at which convolutions stop halving an image."""


class Permute(nn.Module):
    """Axes in another order."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a view with the axes in that order."""
        return x.permute(self.order)


def make_coder(
    shape: tuple[int, ...], num_parameters: int, features_dim: int, widths: list[int]
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return an encoder `[B, *shape] -> [B, num_parameters]` and a decoder of features, back.

    Images are halved by convolutions until a side has `SMALLEST_MAP` rows or columns; anything else
    is flat.
    """
    before: list[nn.Module] = [nn.Flatten()]
    after: list[nn.Module] = [nn.Unflatten(1, shape)]
    flat = int(np.prod(shape))
    if len(shape) == 3:
        is_last = shape[2] <= shape[0]
        channels, *size = (shape[2], *shape[:2]) if is_last else shape
        before, after, flat = _make_convolutions(channels, size)
        if is_last:
            before.insert(0, Permute(0, 3, 1, 2))
            after.append(Permute(0, 2, 3, 1))
    encoder = [*before, *_make_mlp([flat, *widths, num_parameters])]
    decoder = [*_make_mlp([features_dim, *reversed(widths), flat]), *after]
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


def _make_convolutions(
    channels: int, size: list[int]
) -> tuple[list[nn.Module], list[nn.Module], int]:
    """Return layers that halve an image and flatten it, their mirror, and the flat length."""
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    while min(size) > SMALLEST_MAP:
        down += [nn.Conv2d(channels, CONV_WIDTH, 3, stride=2, padding=1), nn.SiLU()]
        # Halving rounds up, so that only an even side has a row left over.
        left_over = (1 - size[0] % 2, 1 - size[1] % 2)
        back = nn.ConvTranspose2d(CONV_WIDTH, channels, 3, 2, 1, output_padding=left_over)
        up = [nn.SiLU(), back, *up]
        channels, size = CONV_WIDTH, [(side + 1) // 2 for side in size]
    smallest = (channels, *size)
    return [*down, nn.Flatten()], [nn.Unflatten(1, smallest), *up], int(np.prod(smallest))


def _make_mlp(widths: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return layers[:-1]
