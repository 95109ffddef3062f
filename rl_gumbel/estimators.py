"""Logits to a sampled one-hot action that carries a gradient: one short function per estimator.

Every estimator draws its sample by the Gumbel-max trick, so that `index` is an exact draw from
softmax(logits) whatever the temperature (only `decoupled_straight_through` has a second temperature
that changes the draw), and every hard estimator ends in `replace_gradient`, the single place where
value and gradient part. What differs is only the surrogate. In the formulas
`D` is the sampled one-hot, `g` the gradient that arrives at it, `G` standard Gumbel noise,
`p = softmax(logits)` and `J(p) = diag(p) - p p^T`, the Jacobian of the softmax.

Add an estimator: write a function `(log_probs, temperature, noise, **options) -> (one_hot, probs)`
and name it in `ESTIMATORS`; tests, configs and the command line find it there.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from rl_gumbel.types import Sample


def replace_gradient(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return `value`, exactly, with the gradient of `surrogate`."""
    # The bracket is exactly zero, so no rounding touches the value.
    return value.detach() + (surrogate - surrogate.detach())


def softmax_product(probs: Tensor, logits: Tensor) -> Tensor:
    """Return a tensor whose gradient with respect to `logits` is `J(probs) g`, `probs` constant."""
    probs = probs.detach()  # J is evaluated at probs, not differentiated through
    return probs * (logits - (probs * logits).sum(-1, keepdim=True))


def _hard(scores: Tensor) -> Tensor:
    """Return the one-hot `[..., N]` of the largest score; a tie goes to the first."""
    return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)


# --- the estimators: (log_probs [..., N], temperature, noise) -> (one_hot, probs) ---------------


def gumbel_softmax(
    log_probs: Tensor, temperature: float | Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the relaxed sample softmax((logits + G) / temperature): not one-hot.

    Jang et al. 2017 (arXiv 1611.01144), eq. 2. Unbiased for the relaxed objective only; the
    consumer must accept soft vectors.
    """
    return ((log_probs + noise) / temperature).softmax(-1), log_probs.exp()


def probabilities(
    log_probs: Tensor, temperature: float | Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Return softmax(logits / temperature) itself, e.g. [0.2, 0.8]: deterministic, not one-hot.

    The mean-field baseline: no noise and no bias where the objective is linear in the vector, but
    the consumer is asked about actions that never occur. `noise` decides `index` only.
    """
    return (log_probs / temperature).softmax(-1), log_probs.exp()


def straight_through(
    log_probs: Tensor, temperature: float | Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `D` with the gradient of softmax(logits / temperature).

    Bengio et al. 2013 (arXiv 1308.3432). At temperature 1 the gradient is J(p) g: exact, with zero
    variance, where the objective is linear in the one-hot; biased otherwise.
    """
    hard = _hard(log_probs + noise)
    return replace_gradient(hard, (log_probs / temperature).softmax(-1)), log_probs.exp()


def straight_through_gumbel(
    log_probs: Tensor, temperature: float | Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `D` with the gradient of the relaxed sample softmax((logits + G) / temperature).

    Jang et al. 2017 (arXiv 1611.01144), section 2.2. Biased at every temperature, for linear
    objectives too; a lower temperature trades bias for variance.
    """
    perturbed = log_probs + noise
    soft = (perturbed / temperature).softmax(-1)
    return replace_gradient(_hard(perturbed), soft), log_probs.exp()


def reinmax(log_probs: Tensor, temperature: float | Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return `D` with the second-order gradient 2 J(m) g - J(p) g / 2.

    `m` is the mean of softmax(logits / temperature) and `D`. Liu et al. 2023 (arXiv 2304.08612),
    algorithm 2. At temperature 1 it is unbiased where the objective is quadratic in the one-hot,
    and equal to ZGR (Shekhovtsov 2023).
    """
    hard = _hard(log_probs + noise)
    midpoint = ((log_probs / temperature).softmax(-1) + hard) / 2
    probs = log_probs.exp()
    surrogate = 2 * softmax_product(midpoint, log_probs) - softmax_product(probs, log_probs) / 2
    return replace_gradient(hard, surrogate), probs


def gumbel_rao(
    log_probs: Tensor, temperature: float | Tensor, noise: Tensor, *, num_samples: int = 10
) -> tuple[Tensor, Tensor]:
    """Return `D` with the straight-through Gumbel gradient averaged over noise that gives `D`.

    Paulus et al. 2021 (arXiv 2010.04838), eq. 11: the mean of `straight_through_gumbel` at a lower
    variance, from `num_samples` draws of G conditioned on D. Departs from the paper's text: the
    conditional draws are constants for the gradient (through them half or more of it is lost).
    `noise` is `[1 + num_samples, ..., N]`; the first draw makes `D`, the others the average.
    """
    hard = _hard(log_probs + noise[0])
    # E = exp(-G) is a standard exponential. Given the winner i of an exponential race with rates p
    # (which sum to one): the winner scores -log E_i, a loser -log(E_j / p_j + E_i).
    log_exponential = -noise[1:]
    log_winner = (log_exponential * hard).sum(-1, keepdim=True)
    loser = -torch.logaddexp(log_exponential - log_probs, log_winner)
    perturbed = torch.where(hard.bool(), -log_winner, loser)
    # Constant noise: only log_probs itself carries the gradient.
    conditional_noise = (perturbed - log_probs).detach()
    soft = ((log_probs + conditional_noise) / temperature).softmax(-1).mean(0)
    return replace_gradient(hard, soft), log_probs.exp()


def gapped_straight_through(
    log_probs: Tensor, temperature: float | Tensor, noise: Tensor, *, gap: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return `D` with the gradient of a softmax whose logits are shifted until `D` leads by `gap`.

    Fan et al. 2022 (arXiv 2206.07235), algorithm 1: no noise in the surrogate given D, hence less
    variance than `straight_through_gumbel`; biased.
    """
    hard = _hard(log_probs + noise)
    top = log_probs.max(-1, keepdim=True).values
    raise_winner = (top - log_probs) * hard
    lower_losers = (log_probs + gap - top).relu() * (1 - hard)
    shift = (raise_winner - lower_losers).detach()  # constants of the surrogate (paper, eq. 8-9)
    return replace_gradient(hard, ((log_probs + shift) / temperature).softmax(-1)), log_probs.exp()


def decoupled_straight_through(
    log_probs: Tensor,
    temperature: float | Tensor,
    noise: Tensor,
    *,
    forward_temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return `D`, drawn at `forward_temperature`, with the gradient of softmax at `temperature`.

    Shah et al. 2024 (arXiv 2410.13331, version 2): `D ~ softmax(logits / forward_temperature)`, and
    `probs` are those probabilities. With `forward_temperature` 1 it is `straight_through`.
    """
    forward = (log_probs / forward_temperature).log_softmax(-1)
    hard = _hard(forward + noise)
    return replace_gradient(hard, (log_probs / temperature).softmax(-1)), forward.exp()


# --- the public call ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimator:
    """An estimator by name: call it on logits, get a `Sample`."""

    name: str
    """Its key in `ESTIMATORS`."""
    function: Callable[..., tuple[Tensor, Tensor]]
    """`(log_probs, temperature, noise, **options) -> (one_hot, probs)`."""
    default_temperature: float = 1.0
    """Used when no temperature is given; estimators want opposite directions."""
    min_temperature: float = 0.0
    """Smallest valid temperature; 0 itself is never valid."""
    is_relaxed: bool = False
    """True if the forward value is not one-hot."""
    options: Mapping[str, float] = field(init=False)
    """Name and default of every option beyond temperature."""

    def __post_init__(self) -> None:
        keywords = inspect.signature(self.function).parameters.values()
        options = {p.name: p.default for p in keywords if p.kind is p.KEYWORD_ONLY}
        object.__setattr__(self, "options", MappingProxyType(options))

    def __call__(
        self,
        logits: Tensor,
        *,
        temperature: float | Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        validate: bool = True,
        **options: float,
    ) -> Sample:
        """Return a sample of softmax(logits) that carries this estimator's gradient.

        Args:
            logits: `[..., N]` of any floating dtype; each row of the last axis is one factor.
            temperature: of the gradient (the sample does not depend on it). A scalar tensor, which
                a compiled function needs to see it change, is not checked.
            mask: broadcastable to `logits`, True where a category may be chosen.
            generator: source of the noise, on the device of the logits.
            noise: standard Gumbel noise instead of a draw: the shape of `logits`, and for
                `gumbel_rao` `[1 + num_samples, ...]`.
            validate: read the logits and the mask for errors. A training loop passes False, since
                the check waits for the device.
            **options: see `options`.

        Raises:
            ValueError: for a temperature or an option out of range, NaN or infinite logits, a row
                whose categories are all masked (the row is named), noise or a mask of the wrong
                shape.
            TypeError: for an unknown option, or a mask that is not boolean.
        """
        if temperature is None:
            temperature = self.default_temperature
        if not isinstance(temperature, Tensor):
            self.check(temperature, options)
        if validate:
            check_logits(logits, mask)
        options = {**self.options, **options}
        log_probs = masked_log_softmax(logits, mask)
        draws = (1 + int(options["num_samples"]),) if "num_samples" in options else ()
        if noise is None:
            noise = sample_gumbel((*draws, *logits.shape), logits.device, generator)
        elif noise.shape != (*draws, *logits.shape):
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}; estimator '{self.name}' needs "
                f"{(*draws, *logits.shape)}"
            )
        noise = noise.to(log_probs.dtype)
        one_hot, probs = self.function(log_probs, temperature, noise, **options)
        index = (log_probs + noise if self.is_relaxed else one_hot).argmax(-1)
        if mask is not None:
            # Drops the gradient that arrives at a closed category; 0 * inf would be NaN.
            one_hot = one_hot.where(mask, 0.0)
        return Sample(index, one_hot.to(logits.dtype), probs.to(logits.dtype))

    def check(self, temperature: float, options: Mapping[str, float] | None = None) -> None:
        """Raise if the temperature or an option is out of range (`ValueError`, `TypeError`)."""
        if not (max(self.min_temperature, 0.0) <= temperature < math.inf) or temperature == 0:
            low = f">= {self.min_temperature:g}" if self.min_temperature > 0 else "> 0"
            raise ValueError(
                f"temperature {temperature!r} of estimator '{self.name}' is out of range: it must "
                f"be {low} and finite"
            )
        for option, value in (options or {}).items():
            if option not in self.options:
                known = ", ".join(self.options) or "none"
                raise TypeError(
                    f"estimator '{self.name}' has no option '{option}'; its options: {known}"
                )
            if option == "num_samples" and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"num_samples {value!r} of '{self.name}' must be an integer >= 1")
            if not 0 < value < math.inf:
                raise ValueError(f"{option} {value!r} of '{self.name}' must be > 0 and finite")


def sample_gumbel(
    shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Return standard Gumbel noise -log(-log(u)), float32 whatever the dtype of the logits.

    Half precision would round some u to 1 and make the noise infinite. In float32 u has 24 bits, so
    that the noise lies between -2.9 and 16.7.
    """
    uniform = torch.rand(shape, dtype=torch.float32, device=device, generator=generator)
    # Away from 0 and 1, where the noise is infinite; half a step of u from 0, one from 1.
    return uniform.clamp_(2**-25, 1 - 2**-24).log_().neg_().log_().neg_()


def masked_log_softmax(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return log-probabilities in at least float32; a masked category's is huge but finite.

    Finite, because entropy and gradients multiply it by a probability of exactly zero. The gradient
    to a masked logit is zero.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if mask is None:
        return _log_softmax(logits)
    # Small enough that no real logit comes near, large enough to divide by a temperature of 1e-5.
    masked = torch.finfo(logits.dtype).min * 1e-6
    return _log_softmax(logits.where(mask, masked))


def _log_softmax(logits: Tensor) -> Tensor:
    """Return `logits.log_softmax(-1)`.

    The CPU computes rows of few categories one number at a time. Laid out category by category
    they fill its vectors, here and in all that is computed from the result: two to six times
    faster.
    """
    if logits.device.type != "cpu" or logits.shape[-1] >= 16:
        return logits.log_softmax(-1)
    return logits.movedim(-1, 0).contiguous().log_softmax(0).movedim(0, -1)


def check_logits(logits: Tensor, mask: Tensor | None = None) -> None:
    """Raise `ValueError` on NaN or infinite allowed logits or an all-masked row.

    So does a shape without categories or a mask of another shape; one that is not boolean is a
    `TypeError`. It reads the tensors' values, hence waits for the device.
    """
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits of shape {tuple(logits.shape)} have no categories, the last axis")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}; it must be torch.bool, True where allowed")
    if mask is not None and not _expands(mask.shape, logits.shape):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, which does not expand to that of the logits, "
            f"{tuple(logits.shape)}"
        )
    allowed = logits if mask is None else logits.where(mask, 0.0)
    if not bool(allowed.isfinite().all()):
        kind = "NaN" if bool(allowed.isnan().any()) else "infinite"
        row = (~allowed.isfinite()).any(-1).nonzero()[0].tolist()
        hint = "" if kind == "NaN" else "; to forbid a category pass mask=, not a logit of -inf"
        raise ValueError(f"logits contain {kind} values, first in row {row}{hint}")
    if mask is not None:
        closed = ~mask.expand(logits.shape).any(-1)
        if bool(closed.any()):
            raise ValueError(f"every category is masked in row {closed.nonzero()[0].tolist()}")


def _expands(shape: torch.Size, to: torch.Size) -> bool:
    ends = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(a in (1, b) for a, b in ends)


ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {
        estimator.name: estimator
        for estimator in (
            Estimator("gumbel_softmax", gumbel_softmax, is_relaxed=True),
            Estimator("probabilities", probabilities, is_relaxed=True),
            Estimator("straight_through", straight_through),
            Estimator("straight_through_gumbel", straight_through_gumbel),
            Estimator("reinmax", reinmax, min_temperature=1.0),
            Estimator("gumbel_rao", gumbel_rao, default_temperature=0.5),
            Estimator("gapped_straight_through", gapped_straight_through),
            Estimator("decoupled_straight_through", decoupled_straight_through),
        )
    }
)
"""Every estimator by name."""
