"""The factored categorical against torch.distributions, finite differences and enumeration.

The oracle is a list of K separate `Categorical`s over the open categories only, so that neither
padding nor masking is part of it.
"""

import itertools

import pytest
import torch
from gymnasium import spaces
from scipy import stats
from torch import Tensor
from torch.distributions import Categorical, Independent, OneHotCategoricalStraightThrough
from torch.distributions import kl_divergence as torch_kl

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.estimators import ESTIMATORS

EQUAL = torch.ones(2, 4, dtype=torch.bool)
UNEQUAL = ActionLayout.from_space(spaces.MultiDiscrete([2, 4, 3])).valid
MASKED = UNEQUAL & torch.tensor(
    [[True, False, True, True], [True, False, True, True], [True, True, True, True]]
)
CASES = pytest.mark.parametrize(
    "valid", [EQUAL, UNEQUAL, MASKED], ids=["equal sizes", "unequal sizes", "masked"]
)
"""`[K, N]` masks: nothing closed, padding only, padding and forbidden categories."""


def make_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_pair(valid: Tensor, seed: int = 0) -> tuple[FactoredCategorical, list[Categorical]]:
    """Return ours over `[6, K, N]` logits that need a gradient, and the oracle of open ones."""
    logits = make_tensor(6, *valid.shape, seed=seed).requires_grad_()
    oracle = [Categorical(logits=logits[:, k, valid[k]]) for k in range(len(valid))]
    return FactoredCategorical(logits, valid), oracle


def open_to_padded(valid: Tensor, position: Tensor) -> Tensor:
    """Return `[B, K]` categories from `[B, K]` positions among the open categories."""
    columns = [valid[k].nonzero().squeeze(-1)[position[:, k]] for k in range(len(valid))]
    return torch.stack(columns, dim=-1)


def sampled_positions(oracle: list[Categorical]) -> Tensor:
    torch.manual_seed(0)  # torch's distributions take no generator
    return torch.stack([factor.sample() for factor in oracle], dim=-1)


def gradients(value: Tensor, oracle: Tensor, *logits: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of two `[B]` results, weighted so that rows cannot compensate."""
    weight = make_tensor(*value.shape, seed=9)
    return tuple(
        list(torch.autograd.grad((result * weight).sum(), logits, retain_graph=True))
        for result in (value, oracle)
    )


# --- against torch.distributions ------------------------------------------------------------------


def test_it_is_independent_categoricals() -> None:
    """Without masks: `Independent(Categorical(logits), 1)`, for every quantity at once."""
    logits, other = make_tensor(6, 2, 4), make_tensor(6, 2, 4, seed=1)
    ours = FactoredCategorical(logits)
    oracle = Independent(Categorical(logits=logits), 1)
    torch.manual_seed(0)
    index = oracle.sample()
    torch.testing.assert_close(ours.probs, oracle.base_dist.probs)
    torch.testing.assert_close(ours.log_probs, oracle.base_dist.logits)
    torch.testing.assert_close(ours.log_prob(index), oracle.log_prob(index))
    torch.testing.assert_close(ours.entropy(), oracle.entropy())
    torch.testing.assert_close(ours.entropy_per_factor(), oracle.base_dist.entropy())
    assert torch.equal(ours.mode, oracle.mode)
    torch.testing.assert_close(
        ours.kl(FactoredCategorical(other)),
        torch_kl(oracle, Independent(Categorical(logits=other), 1)),
    )


@CASES
def test_log_prob_and_its_gradient(valid: Tensor) -> None:
    """By index and by one-hot, the same numbers and gradients as the oracle."""
    ours, oracle = make_pair(valid)
    positions = sampled_positions(oracle)
    index = open_to_padded(valid, positions)
    expected = torch.stack(
        [factor.log_prob(positions[:, k]) for k, factor in enumerate(oracle)]
    ).sum(0)
    one_hot = torch.eye(valid.shape[1], dtype=torch.float64)[index]
    for value in (index, index.int(), one_hot, one_hot.float()):
        actual = ours.log_prob(value)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(*gradients(actual, expected, ours.logits))


@CASES
def test_entropy_and_its_gradient(valid: Tensor) -> None:
    """Joint and per factor; closed categories add nothing, neither value nor gradient."""
    ours, oracle = make_pair(valid)
    per_factor = torch.stack([factor.entropy() for factor in oracle], dim=-1)
    torch.testing.assert_close(ours.entropy_per_factor(), per_factor)
    torch.testing.assert_close(ours.entropy(), per_factor.sum(-1))
    torch.testing.assert_close(*gradients(ours.entropy(), per_factor.sum(-1), ours.logits))


@CASES
def test_kl_and_its_gradients(valid: Tensor) -> None:
    """With respect to both arguments; zero between equals."""
    (ours, oracle), (other, other_oracle) = make_pair(valid), make_pair(valid, seed=1)
    expected = torch.stack([torch_kl(p, q) for p, q in zip(oracle, other_oracle, strict=True)]).sum(
        0
    )
    actual = ours.kl(other)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*gradients(actual, expected, ours.logits, other.logits))
    torch.testing.assert_close(ours.kl(ours), torch.zeros(6, dtype=torch.float64))


@CASES
def test_mode_is_the_most_probable_open_category(valid: Tensor) -> None:
    """Also where a closed category has the largest logit."""
    ours, oracle = make_pair(valid)
    positions = torch.stack([factor.mode for factor in oracle], dim=-1)
    assert torch.equal(ours.mode, open_to_padded(valid, positions))


def test_mode_of_a_tie_is_the_first() -> None:
    """As argmax, so that evaluation is deterministic."""
    assert FactoredCategorical(torch.zeros(1, 2, 3)).mode.tolist() == [[0, 0]]


@CASES
def test_joint_sample_frequencies(valid: Tensor) -> None:
    """100,000 draws, every joint cell against the product of the oracle's probabilities.

    Chi-square with a fixed seed: a p-value under 1e-4 is a wrong law. Closed cells stay empty.
    """
    logits = make_tensor(*valid.shape)
    generator = torch.Generator().manual_seed(0)
    index = FactoredCategorical(logits.expand(100_000, *valid.shape), valid).sample(generator)
    counts = torch.zeros((valid.shape[1],) * len(valid), dtype=torch.float64)
    counts.index_put_(tuple(index.T), torch.ones((), dtype=torch.float64), accumulate=True)
    factors = [
        logits[k].masked_fill(~valid[k], -float("inf")).softmax(-1) for k in range(len(valid))
    ]
    joint = factors[0]
    for factor in factors[1:]:
        joint = joint.unsqueeze(-1) * factor
    is_open = joint > 0
    assert not bool(counts[~is_open].any())
    expected = joint[is_open] * 100_000
    assert stats.chisquare(counts[is_open].numpy(), expected.numpy()).pvalue > 1e-4


@CASES
def test_probabilities_of_all_joint_actions_sum_to_one(valid: Tensor) -> None:
    """Enumeration through `log_prob`; closed categories have probability zero, not a small one."""
    logits = make_tensor(1, *valid.shape)
    joint = torch.tensor(list(itertools.product(range(valid.shape[1]), repeat=len(valid))))
    probs = (
        FactoredCategorical(logits.expand(len(joint), *valid.shape), valid).log_prob(joint).exp()
    )
    closed = ~valid[torch.arange(len(valid)), joint].all(-1)
    assert float(probs.sum()) == pytest.approx(1.0, rel=1e-12)
    assert not bool(probs[closed].any())


# --- exact gradients, from outside ----------------------------------------------------------------


@pytest.mark.parametrize("quantity", ["entropy", "log_prob", "kl", "kl_other", "probs"])
@CASES
def test_gradients_equal_finite_differences(valid: Tensor, quantity: str) -> None:
    """torch's gradcheck in float64, masked logits included (their derivative is zero)."""
    index = open_to_padded(valid, torch.zeros(3, len(valid), dtype=torch.int64))
    other = FactoredCategorical(make_tensor(3, *valid.shape, seed=1), valid)

    def function(logits: Tensor) -> Tensor:
        ours = FactoredCategorical(logits, valid)
        return {
            "entropy": ours.entropy,
            "log_prob": lambda: ours.log_prob(index),
            "kl": lambda: ours.kl(other),
            "kl_other": lambda: other.kl(ours),
            "probs": lambda: ours.probs,
        }[quantity]()

    assert torch.autograd.gradcheck(function, make_tensor(3, *valid.shape).requires_grad_())


def entropy_gradient(logits: Tensor) -> Tensor:
    """Return -p (log p + H), the gradient of the entropy of one factor, by hand."""
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1, keepdim=True)
    return -log_probs.exp() * (log_probs + entropy)


def test_the_entropy_gradient_is_exact_where_torch_has_none() -> None:
    """`OneHotCategoricalStraightThrough.log_prob(rsample())` reads the argmax of the sample.

    Its gradient has mean zero, so an agent written with it silently has no entropy bonus: over
    100,000 draws within five standard errors of zero, and under a hundredth of the true gradient.
    """
    logits = make_tensor(1, 5).requires_grad_()
    (exact,) = torch.autograd.grad(FactoredCategorical(logits).entropy().sum(), logits)
    torch.testing.assert_close(exact, entropy_gradient(logits.detach()))

    rows = logits.detach().expand(100_000, 5).clone().requires_grad_()
    torch.manual_seed(0)  # torch's distributions take no generator
    theirs = OneHotCategoricalStraightThrough(logits=rows)
    (draws,) = torch.autograd.grad(-theirs.log_prob(theirs.rsample()).sum(), rows)
    error = draws.std(0) / len(draws) ** 0.5
    assert float((draws.mean(0).abs() / error).max()) < 5
    assert float(draws.mean(0).norm()) < 0.01 * float(exact.norm())


def sampled_entropy_gradients(estimator: str, num_draws: int) -> Tensor:
    """Return `[M, 5]` gradients of -log_prob(rsample), the sampled entropy."""
    rows = make_tensor(1, 5).expand(num_draws, 1, 5).clone().requires_grad_()
    ours = FactoredCategorical(rows)
    sample = ours.rsample(estimator, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad(-ours.log_prob(sample.one_hot).sum(), rows)[0].squeeze(1)


def test_log_prob_of_a_plain_straight_through_sample_has_the_entropy_gradient_on_average() -> None:
    """<D, log p> is linear in D, where plain straight-through is unbiased: five errors."""
    draws = sampled_entropy_gradients("straight_through", 100_000)
    error = draws.std(0) / len(draws) ** 0.5
    exact = entropy_gradient(make_tensor(1, 5)).squeeze(0)
    assert float(((draws.mean(0) - exact).abs() / error).max()) < 5
    assert float((exact.abs() / error).max()) > 50


def test_log_prob_of_a_gumbel_sample_has_a_biased_entropy_gradient() -> None:
    """Why the docstring sends one to `entropy`."""
    draws = sampled_entropy_gradients("straight_through_gumbel", 100_000)
    exact = entropy_gradient(make_tensor(1, 5)).squeeze(0)
    assert float((draws.mean(0) - exact).norm()) > 0.1 * float(exact.norm())


# --- numerics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_masks_and_extreme_logits_leave_everything_finite(dtype: torch.dtype) -> None:
    """-inf in p log p is NaN; here entropy, divergence and gradients are finite."""
    rows = [[1e4, -1e4, 0.0], [0.0, 1e4, 1e4], [-1e4, 0.0, 3.0]]
    mask = torch.tensor([[True, True, False], [True, False, True], [True, False, False]])
    logits = torch.tensor([rows], dtype=dtype, requires_grad=True)
    ours = FactoredCategorical(logits, mask)
    other = FactoredCategorical(torch.zeros(1, 3, 3, dtype=dtype), mask)
    one_hot = ours.rsample("reinmax").one_hot
    total = ours.entropy() + ours.kl(other) + other.kl(ours) + ours.log_prob(one_hot)
    total.sum().backward()
    assert total.dtype == torch.float32
    assert bool(total.isfinite().all())
    assert bool(logits.grad.isfinite().all())
    assert not bool(logits.grad[0][~mask].any())


def test_a_masked_action_has_a_finite_log_prob_of_probability_zero() -> None:
    """Huge and negative instead of -inf, so that a sum over a batch survives."""
    ours = FactoredCategorical(torch.zeros(1, 1, 3), torch.tensor([True, True, False]))
    log_prob = ours.log_prob(torch.tensor([[2]]))
    assert bool(log_prob.isfinite())
    assert float(log_prob) < -1e30
    assert float(log_prob.exp()) == 0.0


def test_half_precision_logits_give_float32_results() -> None:
    """Sixteen bits would round log-probabilities to two digits."""
    logits = make_tensor(4, 2, 3).bfloat16()
    half, full = FactoredCategorical(logits), FactoredCategorical(logits.float())
    for attribute in ("entropy", "entropy_per_factor"):
        assert getattr(half, attribute)().dtype == torch.float32
        assert torch.equal(getattr(half, attribute)(), getattr(full, attribute)())
    assert half.log_prob(half.mode).dtype == torch.float32
    assert half.rsample().one_hot.dtype == torch.bfloat16


def test_an_empty_batch_has_empty_results() -> None:
    """No row, no number, no error."""
    ours = FactoredCategorical(torch.zeros(0, 2, 3))
    assert ours.sample().shape == ours.mode.shape == (0, 2)
    assert ours.entropy().shape == ours.log_prob(ours.mode).shape == ours.kl(ours).shape == (0,)


# --- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_rsample_is_the_named_estimator_with_mask_and_options(name: str) -> None:
    """Same generator state, same sample and gradient as the direct call."""
    logits = make_tensor(8, 3, 4).requires_grad_()
    options = dict(ESTIMATORS[name].options)
    ours, direct = (
        call(temperature=1.3, generator=torch.Generator().manual_seed(0), **options)
        for call in (
            lambda **kw: FactoredCategorical(logits, MASKED).rsample(name, **kw),
            lambda **kw: ESTIMATORS[name](logits, mask=MASKED, **kw),
        )
    )
    weight = make_tensor(8, 3, 4, seed=2)
    assert torch.equal(ours.index, direct.index)
    assert torch.equal(ours.one_hot, direct.one_hot)
    assert torch.equal(
        *(torch.autograd.grad((s.one_hot * weight).sum(), logits)[0] for s in (ours, direct))
    )


def test_sample_repeats_with_its_generator_and_has_no_gradient() -> None:
    """`rsample` draws in another way; acting needs no gradient."""
    ours, _ = make_pair(UNEQUAL)
    index, again = (ours.sample(torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(index, again)
    assert index.dtype == torch.int64
    assert not index.requires_grad


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_extreme_draws_hit_open_categories(monkeypatch, draw: float, dtype) -> None:
    """First and last categories closed or of no weight, and sums that rounding moves from 1."""
    monkeypatch.setattr(torch, "rand", lambda shape, **kw: torch.full(shape, draw))
    logits = make_tensor(1000, 1, 7).to(dtype) * 10
    mask = torch.tensor([False, True, True, False, True, True, False])
    index = FactoredCategorical(logits, mask).sample()
    assert set(index.unique().tolist()) <= {1, 2, 4, 5}


def test_rsample_takes_noise() -> None:
    """Deterministic: no randomness is left."""
    noise = make_tensor(6, 3, 4, seed=5)
    ours, _ = make_pair(UNEQUAL)
    expected = (ours.logits + noise).masked_fill(~UNEQUAL, -float("inf")).argmax(-1)
    assert torch.equal(ours.rsample(noise=noise).index, expected)


# --- errors ---------------------------------------------------------------------------------------


def test_an_unknown_estimator_is_refused_with_the_known_ones() -> None:
    """The message lists the registry."""
    with pytest.raises(ValueError, match="unknown estimator 'gumble'; known: gumbel_softmax, prob"):
        FactoredCategorical(torch.zeros(1, 2, 3)).rsample("gumble")


def test_an_unknown_option_is_refused() -> None:
    """By the estimator, through `rsample`."""
    with pytest.raises(TypeError, match="has no option 'gap'"):
        FactoredCategorical(torch.zeros(1, 2, 3)).rsample("reinmax", gap=1.0)


@pytest.mark.parametrize(
    ("logits", "mask", "message"),
    [
        ([[[0.0, float("nan")]]], None, r"logits contain NaN values, first in row \[0, 0\]"),
        ([[[0.0, -float("inf")]]], None, "infinite values.*pass mask="),
        ([[[0.0, 1.0]]], [[False, False]], r"every category is masked in row \[0, 0\]"),
    ],
)
def test_unusable_logits_and_masks_are_refused(
    logits: list[object], mask: list[object] | None, message: str
) -> None:
    """At construction, unless `validate=False`."""
    arguments = torch.tensor(logits), None if mask is None else torch.tensor(mask)
    with pytest.raises(ValueError, match=message):
        FactoredCategorical(*arguments)
    FactoredCategorical(*arguments, validate=False)


def test_without_validation_no_value_is_read() -> None:
    """On the meta device every read of a value raises; a training loop must not wait for one."""
    logits = torch.zeros(5, 2, 3, device="meta", requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool, device="meta")
    ours = FactoredCategorical(logits, mask, validate=False)
    total = ours.entropy() + ours.kl(ours) + ours.log_prob(ours.sample())
    (total + ours.log_prob(ours.rsample().one_hot)).sum().backward()
    assert logits.grad.shape == (5, 2, 3)
