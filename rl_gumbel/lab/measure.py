"""How far a random gradient is from the true one: bias, variance, error and cosine, with errors.

Everything is relative to the true gradient: a bias of 0.1 is a tenth of its norm, a variance of 4
means a standard deviation of twice its norm.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.estimators import ESTIMATORS
from rl_gumbel.lab.objectives import Objective
from rl_gumbel.losses import local_expectation_value

NUM_GROUPS = 16
"""Groups of samples whose scatter gives the standard errors (jackknife)."""
ROUNDING = 1e-9
"""Squared bias that single precision may make of none."""
LEAVE_ONE_OUT_SAMPLES = 4
BASELINES = (
    "score_function",
    "score_function_baseline",
    "leave_one_out",
    "local_expectation",
    "exact",
)
"""What stands beside the estimators."""


@dataclass(frozen=True)
class Method:
    """A way to a gradient: a name of `ESTIMATORS` or of `BASELINES`.

    `score_function` is REINFORCE (Williams 1992) without a baseline; `score_function_baseline`
    subtracts the exact expectation, the most that a critic of states can do; `leave_one_out` takes
    the mean of the other samples instead (4 samples, 4 evaluations); `local_expectation` sums over
    each factor, the others sampled; `exact` over all.
    """

    name: str
    temperature: float | None = None
    """Of an estimator; None is its default, and all there is for a baseline."""
    options: tuple[tuple[str, float], ...] = ()
    """Of an estimator, by name."""

    def __post_init__(self) -> None:
        if self.is_estimator and self.temperature is None:
            default = ESTIMATORS[self.name].default_temperature
            object.__setattr__(self, "temperature", default)

    @property
    def is_estimator(self) -> bool:
        """Whether it differentiates through the action."""
        return self.name in ESTIMATORS

    def num_evaluations(self, layout: ActionLayout) -> int:
        """Return how often it evaluates the objective for one gradient; 0 for `exact`."""
        special = {
            "leave_one_out": LEAVE_ONE_OUT_SAMPLES,
            "local_expectation": layout.num_factors * layout.num_categories,
            "exact": 0,
        }
        return special.get(self.name, 1)

    def value(
        self,
        policy: FactoredCategorical,
        objective: Objective,
        layout: ActionLayout,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return `[..., S]` values of a policy over `[..., S, K]`, with the method's gradient."""
        if self.is_estimator:
            options: dict[str, Any] = dict(self.options)
            sample = policy.rsample(
                self.name, temperature=self.temperature, generator=generator, **options
            )
            return objective(sample.one_hot)
        if self.name == "exact":
            if policy.logits.ndim == 3:
                return objective.expectation(policy)
            repeats = (FactoredCategorical(r, policy.mask, False) for r in policy.logits)
            return torch.stack([self.value(r, objective, layout) for r in repeats])
        if self.name == "local_expectation":
            return _local_expectation(policy, objective, layout, generator)
        if self.name == "leave_one_out":
            return _leave_one_out(policy, objective, layout, generator)
        index = policy.sample(generator)
        with torch.no_grad():  # the score function differentiates the log-probability alone
            value = objective(layout.index_to_one_hot(index))
            if self.name == "score_function_baseline":
                value = value - _expectation(policy, objective)
        return value * policy.log_prob(index)


def _expectation(policy: FactoredCategorical, objective: Objective) -> Tensor:
    """Return `[S]` of a policy whose leading dimensions repeat the same rows."""
    logits, mask = policy.logits, policy.mask
    while logits.ndim > 3:
        logits = logits[0]
    return objective.expectation(FactoredCategorical(logits, mask, validate=False))


def _leave_one_out(
    policy: FactoredCategorical,
    objective: Objective,
    layout: ActionLayout,
    generator: torch.Generator | None,
) -> Tensor:
    index = torch.stack([policy.sample(generator) for _ in range(LEAVE_ONE_OUT_SAMPLES)])
    one_hot = layout.index_to_one_hot(index)
    with torch.no_grad():  # as above
        value = objective(one_hot)
        # f_i - mean of the others = n / (n - 1) (f_i - mean of all)
        advantage = (value - value.mean(0)) * len(value) / (len(value) - 1)
    return (advantage * policy.log_prob(one_hot)).mean(0)


def _local_expectation(
    policy: FactoredCategorical,
    objective: Objective,
    layout: ActionLayout,
    generator: torch.Generator | None,
) -> Tensor:
    *before, instances, num_factors, num_categories = policy.logits.shape
    mask = None if policy.mask is None else policy.mask.expand(policy.logits.shape)
    rows = FactoredCategorical(
        policy.logits.reshape(-1, num_factors, num_categories),
        None if mask is None else mask.reshape(-1, num_factors, num_categories),
        validate=False,
    )

    def values(one_hot: Tensor) -> Tensor:
        shape = (len(one_hot), *before, instances, num_factors, num_categories)
        return objective(one_hot.reshape(shape)).flatten(1)

    index = rows.sample(generator)
    return local_expectation_value(rows, index, layout, values).reshape(*before, instances)


@dataclass(frozen=True)
class Errors:
    """Of one gradient, relative to the true one; `_se` are standard errors."""

    draws: int
    """Gradients that were sampled."""
    bias: float
    """Norm of (mean gradient - true gradient): the root of `bias_squared`, or 0 where that is not
    three standard errors above 0."""
    bias_squared: float
    """Its square, estimated without bias: it may come out negative where there is none."""
    bias_squared_se: float
    variance: float
    """Mean squared distance of a gradient from the mean one."""
    variance_se: float
    mean_squared_error: float
    """Mean squared distance of a gradient from the true one: bias squared plus variance."""
    mean_squared_error_se: float
    cosine: float
    """Of one gradient with the true one, on average."""
    cosine_se: float
    cosine_of_mean: float
    """Of the mean gradient with the true one: what very many samples would reach."""


def measure(draw: Callable[[int], Tensor], reference: Tensor, draws: int) -> Errors:
    """Return the errors of gradients `draw(n)` `[n, S, D]` against `reference` `[S, D]`.

    Norms are taken over all S instances together; `cosine` is the mean over instances.

    Args:
        draw: returns n independent gradients for each instance.
        reference: the true gradients.
        draws: how many to sample, rounded up to a multiple of `NUM_GROUPS`.
    """
    size = math.ceil(draws / NUM_GROUPS)
    reference = reference.double()
    scale = reference.square().sum()
    means, squares, cosines = [], [], []
    for _ in range(NUM_GROUPS):
        gradient = draw(size).double()
        means.append(gradient.mean(0))
        squares.append((gradient - reference).square().sum((-2, -1)).mean())
        cosines.append(cosine_similarity(gradient, reference, dim=-1).mean())
    deviation = (torch.stack(means) - reference).flatten(1) / scale.sqrt()  # [G, S D]
    bias_squared, bias_squared_out = _squared_mean(deviation)
    error = torch.stack(squares) / scale
    error_out = _leave_out(error)
    along = deviation.mean(0) @ reference.flatten() / scale.sqrt()
    # |m|^2 = |m - g|^2 + 2 <m - g, g> + |g|^2, with the unbiased square in its first term.
    norm = (bias_squared + 2 * along + 1).clamp_min(0).sqrt()
    cosine, bias_se = torch.stack(cosines), _jackknife(bias_squared_out)
    return Errors(
        draws=size * NUM_GROUPS,
        bias=math.sqrt(bias_squared) if bias_squared > 3 * bias_se + ROUNDING else 0.0,
        bias_squared=float(bias_squared),
        bias_squared_se=bias_se,
        variance=float(error.mean() - bias_squared),
        variance_se=_jackknife(error_out - bias_squared_out),
        mean_squared_error=float(error.mean()),
        mean_squared_error_se=_jackknife(error_out),
        cosine=float(cosine.mean()),
        cosine_se=_jackknife(_leave_out(cosine)),
        cosine_of_mean=float(((1 + along) / norm).clamp(-1, 1)),
    )


def _squared_mean(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return |E row|^2 without bias, and the same `[G]` with one of the G rows left out.

    The mean of <row_i, row_j> over pairs of different rows.
    """
    count, total = len(rows), rows.sum(0)
    own, with_total = rows.square().sum(-1), rows @ total
    whole = total.square().sum()
    out = whole - 2 * with_total + own - (own.sum() - own)
    return (
        (whole - own.sum()) / (count * (count - 1)),
        out / ((count - 1) * (count - 2)),
    )


def _leave_out(values: Tensor) -> Tensor:
    """Return `[G]` means of the values but one."""
    return (values.sum() - values) / (len(values) - 1)


def _jackknife(left_out: Tensor) -> float:
    """Return the standard error of a statistic from its `[G]` values with a group left out."""
    return float(((len(left_out) - 1) * left_out.var(correction=0)).sqrt())


def logit_gradients(
    method: Method,
    objective: Objective,
    logits: Tensor,
    layout: ActionLayout,
    generator: torch.Generator | None = None,
) -> Callable[[int], Tensor]:
    """Return a function of n to `[n, S, K N]` gradients in the logits `[S, K, N]`."""

    def draw(count: int) -> Tensor:
        leaf = logits.detach().expand(count, *logits.shape).clone().requires_grad_()
        policy = FactoredCategorical(leaf, layout.mask, validate=False)
        value = method.value(policy, objective, layout, generator)
        return torch.autograd.grad(value.sum(), leaf)[0].flatten(2)

    return draw


def exact_gradient(objective: Objective, logits: Tensor, layout: ActionLayout) -> Tensor:
    """Return the `[S, K N]` gradient of the expectation in the logits `[S, K, N]`."""
    leaf = logits.detach().requires_grad_()
    policy = FactoredCategorical(leaf, layout.mask, validate=False)
    return torch.autograd.grad(objective.expectation(policy).sum(), leaf)[0].flatten(1)


def microseconds(call: Callable[[], object], budget_seconds: float = 0.05) -> float:
    """Return the shortest processor time of a call, of as many as a budget allows.

    On one thread that is the duration on a machine with nothing else to do.
    """
    call()  # the first is slower
    durations: list[float] = []
    while sum(durations) < budget_seconds:
        start = time.process_time()
        call()
        durations.append(time.process_time() - start)
    return min(durations) * 1e6
