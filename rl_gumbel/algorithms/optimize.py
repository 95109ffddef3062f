"""Optimiser steps and learned coefficients, the same in every algorithm."""

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from rl_gumbel.actions import ActionLayout


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float | None
) -> tuple[Tensor, Tensor]:
    """Take one step on the optimiser's parameters alone, unless their gradient is not finite.

    Args:
        optimizer: of the parameters that learn.
        loss: a scalar.
        max_norm: of the gradient, clipped to it; None does not clip.

    Returns:
        The norm of the gradient before clipping, and whether it is finite, bool: where it is not,
        parameters and moments stay as they are.
    """
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [p for p in everything if p.requires_grad]  # an extractor may be frozen
    gradients, norm = clipped_gradients(parameters, loss, max_norm)
    is_finite = norm.isfinite()
    step_by(optimizer, parameters, gradients, is_finite)
    return norm, is_finite


def step_by(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    is_finite: Tensor,
) -> None:
    """Take the optimiser's step by these gradients, or none; inside a compiled function too."""
    if torch.compiler.is_compiling():
        _adam_if(optimizer, parameters, gradients, is_finite)
        return
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    step_if(optimizer, is_finite)


def is_traceable(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether `step_by` can be compiled: for a fused Adam without extras."""
    (group,) = optimizer.param_groups
    extras = any(group.get(name) for name in ("amsgrad", "maximize", "weight_decay"))
    return type(optimizer) is torch.optim.Adam and bool(group["fused"]) and not extras


@torch.no_grad()  # the parameters are leaves
def _adam_if(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    is_finite: Tensor,
) -> None:
    """Take a step of Adam (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1), or leave no trace.

    On the optimiser's own state, which its first step has made, in operations that a compiler joins
    with others; its own step stays outside of what is compiled.
    """
    (group,) = optimizer.param_groups
    rate, (beta1, beta2), epsilon = group["lr"], group["betas"], group["eps"]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        state = optimizer.state[parameter]
        count, first, second = state["step"], state["exp_avg"], state["exp_avg_sq"]
        new_count = count + 1
        new_first = first.lerp(gradient, 1 - beta1)
        new_second = second.lerp(gradient.square(), 1 - beta2)
        root = (new_second / (1 - beta2**new_count)).sqrt() + epsilon
        moved = parameter - rate / (1 - beta1**new_count) * new_first / root
        for old, new in (
            (count, new_count),
            (first, new_first),
            (second, new_second),
            (parameter, moved),
        ):
            old.copy_(torch.where(is_finite, new, old))


def step_if(optimizer: torch.optim.Optimizer, is_finite: Tensor) -> None:
    """Take the optimiser's step, or leave no trace of it, without waiting for the device.

    A fused optimiser decides there, at no cost. Any other takes the step and undoes it, except for
    a step count that it keeps on the host.
    """
    if all(group.get("fused") for group in optimizer.param_groups):
        # What torch's own loss scaling tells a fused optimiser: 1 takes no step.
        optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
        optimizer.step()
        return
    before = {id(tensor): tensor.detach().clone() for tensor in _tensors(optimizer)}
    optimizer.step()
    with torch.no_grad():  # the parameters are leaves
        for tensor in _tensors(optimizer):
            if tensor.device == is_finite.device:
                old = before.get(id(tensor), torch.zeros_like(tensor))  # moments start at zero
                tensor.copy_(torch.where(is_finite, tensor, old))


def clipped_gradients(
    parameters: list[nn.Parameter], loss: Tensor, max_norm: float | None
) -> tuple[list[Tensor | None], Tensor]:
    """Return the gradients of these alone, None where the loss has none, and their norm.

    The norm is that before clipping to `max_norm`; None does not clip.
    """
    gradients = [
        # Fused Adam takes numbers in the order of memory, which of a convolution may be another.
        None if gradient is None else gradient.contiguous()
        for gradient in torch.autograd.grad(loss, parameters, allow_unused=True)
    ]
    present = [gradient for gradient in gradients if gradient is not None]
    norm = torch.nn.utils.get_total_norm(present)
    if max_norm is not None and present:
        # As torch.nn.utils.clip_grads_with_norm_, which wants parameters.
        torch._foreach_mul_(present, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return gradients, norm


def _tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return parameters and state of an optimiser."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = [value for state in optimizer.state.values() for value in state.values()]
    return [tensor for tensor in parameters + states if isinstance(tensor, Tensor)]


def log_coefficient(name: str, value: str | float) -> float:
    """Return the logarithm of a coefficient, or of what it starts at if it is learned.

    Args:
        name: of the setting, for the error.
        value: a number; or, to be learned, `auto` (starting at 1) or `auto_` and the start.

    Raises:
        ValueError: for anything else.
    """
    start = value
    if isinstance(value, str):
        word, _, number = value.partition("_")
        try:
            start = float(number or 1.0) if word == "auto" else -1.0
        except ValueError:
            start = -1.0
    is_number = isinstance(start, Real) and 0 <= start < math.inf
    if not is_number or (start == 0 and start is not value):
        raise ValueError(
            f"{name} {value!r} must be a number >= 0, 'auto' or 'auto_' and a number > 0"
        )
    return math.log(start) if start > 0 else -math.inf


def entropy_target(
    target_entropy: str | float, fraction: float, ent_coef: str | float, layout: ActionLayout
) -> float:
    """Return the entropy in nats that a learned coefficient aims at.

    Args:
        target_entropy: in nats, or `auto` for a fraction of the maximum.
        fraction: of the maximum, in (0, 1).
        ent_coef: as given to the algorithm; a number is not learned.
        layout: of the action space.

    Raises:
        ValueError: for a target out of range or that would be ignored.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"target_entropy_fraction {fraction!r} must be in (0, 1)")
    if target_entropy == "auto":
        return fraction * layout.max_entropy
    if not isinstance(ent_coef, str):
        raise ValueError(f"target_entropy {target_entropy!r} would be ignored: ent_coef is fixed")
    if not isinstance(target_entropy, Real) or not 0 < target_entropy < layout.max_entropy:
        raise ValueError(
            f"target_entropy {target_entropy!r} must be 'auto' or between 0 and the maximum of "
            f"this space, {layout.max_entropy:.3f} nats (discrete entropy is positive)"
        )
    return target_entropy
