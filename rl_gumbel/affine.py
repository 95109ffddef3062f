"""Affine maps of many rows, by the faster of the two libraries that PyTorch has for them.

On the CPU PyTorch multiplies matrices of 32-bit floats by MKL, which uses AVX-512 on processors of
its own maker only. oneDNN, which PyTorch ships too, uses it wherever it is: on an AMD processor of
2026 twice as fast from some 4 million multiplications on. Below that its calls cost more.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_MULTIPLICATIONS = 2**22
"""Of a product that oneDNN is asked for."""
HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether there is a oneDNN and an AVX-512 that make the difference."""


class Linear(torch.nn.Linear):
    """`nn.Linear`, faster for many rows on some processors; its gradient has no gradient there."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., out]` of `[..., in]`."""
        rows = x.numel() // self.in_features
        if not is_large(x, rows, self.in_features, self.out_features):
            return super().forward(x)
        flat = x.reshape(1, rows, self.in_features)
        bias = None if self.bias is None else self.bias.view(1, 1, -1)
        y = affine(flat, self.weight.t().unsqueeze(0), bias)
        return y.view(*x.shape[:-1], self.out_features)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W + b for each of E members.

    Args:
        x: `[E, B, in]`.
        weight: `[E, in, out]`.
        bias: `[E, 1, out]` or None.

    Returns:
        `[E, B, out]`, differentiable; once only where `is_large`.
    """
    if not is_large(x, x.shape[1], *weight.shape[1:]):
        return product(x, weight, bias)
    y: Tensor = _Affine.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return y


def is_large(x: Tensor, rows: int, width_in: int, width_out: int) -> bool:
    """Return whether oneDNN would be asked to multiply such a matrix with `width_out` columns."""
    return (
        rows * width_in * width_out >= MIN_MULTIPLICATIONS
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and HAS_ONEDNN
        and not torch.is_autocast_enabled("cpu")
    )


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(grad, weight.mT) if needs_x else None,
            product(x.mT, grad) if needs_weight else None,
            grad.sum(1, keepdim=True) if needs_bias else None,
        )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W + b `[..., B, out]`, without a gradient; oneDNN's where `is_large`.

    Args:
        x: `[B, in]` or, for E products, `[E, B, in]`.
        weight: `[in, out]` or `[E, in, out]`.
        bias: `[out]` or `[E, 1, out]`, or None.
    """
    if is_large(x, x.shape[-2], x.shape[-1], weight.shape[-1]):
        y: Tensor = torch.ops.rl_gumbel.onednn_affine(x, weight, bias)
        return y
    if bias is None:
        return x @ weight
    return torch.addmm(bias, x, weight) if x.dim() == 2 else torch.baddbmm(bias, x, weight)


def _onednn_affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.dim() == 2:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.t(), bias, "none", [], "")
        return y
    biases = [None] * len(x) if bias is None else list(bias.squeeze(1))
    return torch.stack([_onednn_affine(*part) for part in zip(x, weight, biases, strict=True)])


# An operator of our own, since the compiler takes PyTorch's for one whose weights never change.
_LIBRARY = torch.library.Library("rl_gumbel", "DEF")
_LIBRARY.define("onednn_affine(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_LIBRARY.impl("onednn_affine", _onednn_affine, "CPU")
_LIBRARY.impl(
    "onednn_affine", lambda x, weight, bias: x.new_empty(*x.shape[:-1], weight.shape[-1]), "Meta"
)
