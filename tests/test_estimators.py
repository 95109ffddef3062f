"""Estimators: forward value, sampling law, gradient formula, numerics, errors.

The formulas are written again here, with the Jacobian of the softmax as a matrix.
"""

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor

from rl_gumbel.estimators import ESTIMATORS, check_logits, replace_gradient, sample_gumbel

NAMES = tuple(ESTIMATORS)
RELAXED = ("gumbel_softmax", "probabilities")
HARD = tuple(name for name in NAMES if name not in RELAXED)
INF = float("inf")

MASK = torch.tensor(
    [[True, True, False, True], [False, True, True, True], [True, False, False, False]]
)
"""`[K=3, N=4]`: one, one and three closed categories; the last row leaves no choice."""


def make_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def make_noise(name: str, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """Return standard Gumbel noise of the shape that the estimator wants, float64."""
    samples = ESTIMATORS[name].options.get("num_samples")
    shape = shape if samples is None else (1 + int(samples), *shape)
    generator = torch.Generator().manual_seed(seed)
    return -torch.rand(shape, generator=generator, dtype=torch.float64).log().neg().log()


def is_exactly_one_hot(value: Tensor) -> bool:
    return bool(((value == 0) | (value == 1)).all() and (value.sum(-1) == 1).all())


# --- the formulas ---------------------------------------------------------------------------------


def jacobian_product(probs: Tensor, gradient: Tensor) -> Tensor:
    """Return (diag(p) - p p^T) g, the Jacobian as a matrix."""
    jacobian = torch.diag_embed(probs) - probs.unsqueeze(-1) * probs.unsqueeze(-2)
    return (jacobian @ gradient.unsqueeze(-1)).squeeze(-1)


def hot(theta: Tensor, noise: Tensor) -> Tensor:
    return torch.eye(theta.shape[-1], dtype=theta.dtype)[(theta + noise).argmax(-1)]


def relaxed_formula(theta: Tensor, t: float, noise: Tensor, g: Tensor) -> Tensor:
    return jacobian_product(((theta + noise) / t).softmax(-1), g) / t


def mean_formula(theta: Tensor, t: float, noise: Tensor, g: Tensor) -> Tensor:
    return jacobian_product((theta / t).softmax(-1), g) / t


def reinmax_formula(theta: Tensor, t: float, noise: Tensor, g: Tensor) -> Tensor:
    middle = 0.5 * ((theta / t).softmax(-1) + hot(theta, noise))
    return 2 * jacobian_product(middle, g) - 0.5 * jacobian_product(theta.softmax(-1), g)


def gumbel_rao_formula(theta: Tensor, t: float, noise: Tensor, g: Tensor) -> Tensor:
    """Paulus et al.: winner -log E_i + log Z, loser -log(E_j / e^theta_j + E_i / Z)."""
    d = hot(theta, noise[0])
    rate, total = theta.exp(), theta.exp().sum(-1, keepdim=True)
    gradients = []
    for exponential in (-noise[1:]).exp():
        first = (exponential * d).sum(-1, keepdim=True)
        loser = -(exponential / rate + first / total).log()
        perturbed = d * (total / first).log() + (1 - d) * torch.nan_to_num(loser, neginf=-1e300)
        gradients.append(jacobian_product((perturbed / t).softmax(-1), g) / t)
    return torch.stack(gradients).mean(0)


def gapped_formula(theta: Tensor, t: float, noise: Tensor, g: Tensor, gap: float = 1.0) -> Tensor:
    """Fan et al.: the winner is raised to the maximum, losers are cut at the maximum minus gap."""
    d = hot(theta, noise).bool()
    top = theta.amax(-1, keepdim=True)
    shifted = torch.where(d, top.expand_as(theta), torch.minimum(theta, top - gap))
    return jacobian_product((shifted / t).softmax(-1), g) / t


FORMULAS = {
    "gumbel_softmax": relaxed_formula,
    "probabilities": mean_formula,
    "straight_through": mean_formula,
    "straight_through_gumbel": relaxed_formula,
    "reinmax": reinmax_formula,
    "gumbel_rao": gumbel_rao_formula,
    "gapped_straight_through": gapped_formula,
    "decoupled_straight_through": mean_formula,
}


@pytest.mark.parametrize("mask", [None, MASK], ids=["open", "masked"])
@pytest.mark.parametrize("temperature", [1.0, 2.5, 0.4])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_equals_the_formula(name: str, temperature: float, mask: Tensor | None) -> None:
    """The gradient of <g, one_hot> is the table's Jacobian-vector product, with D held fixed."""
    temperature = max(temperature, ESTIMATORS[name].min_temperature)
    logits = make_logits(5, 3, 4).requires_grad_()
    noise = make_noise(name, (5, 3, 4))
    incoming = make_logits(5, 3, 4, seed=2)
    sample = ESTIMATORS[name](logits, temperature=temperature, mask=mask, noise=noise)
    (gradient,) = torch.autograd.grad((sample.one_hot * incoming).sum(), logits)

    theta = logits.detach() if mask is None else logits.detach().masked_fill(~mask, -INF)
    expected = FORMULAS[name](theta, temperature, noise, incoming)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_the_formulas_cover_every_estimator() -> None:
    """A new estimator must bring its formula."""
    assert set(FORMULAS) == set(ESTIMATORS)


def test_gapped_gap_moves_the_surrogate() -> None:
    """The option reaches the formula: gap 0.3 and gap 3 both agree with it."""
    logits, incoming = make_logits(5, 4).requires_grad_(), make_logits(5, 4, seed=2)
    noise = make_noise("gapped_straight_through", (5, 4))
    for gap in (0.3, 3.0):
        sample = ESTIMATORS["gapped_straight_through"](logits, noise=noise, gap=gap)
        (gradient,) = torch.autograd.grad((sample.one_hot * incoming).sum(), logits)
        expected = gapped_formula(logits.detach(), 1.0, noise, incoming, gap)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", NAMES)
def test_probs_carry_the_gradient_of_softmax(name: str) -> None:
    """`Sample.probs` is differentiable too: J(p) g, whatever the estimator."""
    logits, incoming = make_logits(3, 4).requires_grad_(), make_logits(3, 4, seed=2)
    sample = ESTIMATORS[name](logits)
    (gradient,) = torch.autograd.grad((sample.probs * incoming).sum(), logits)
    expected = jacobian_product(logits.detach().softmax(-1), incoming)
    torch.testing.assert_close(sample.probs, logits.softmax(-1))
    torch.testing.assert_close(gradient, expected)


def test_replace_gradient_keeps_the_value_bit_for_bit() -> None:
    """Adding and subtracting a surrogate in another order would round one-hots to 0.99999994."""
    value = torch.eye(3).repeat(1000, 1)
    surrogate = make_logits(3000, 3, dtype=torch.float32).softmax(-1).requires_grad_()
    result = replace_gradient(value, surrogate)
    assert torch.equal(result, value)
    (gradient,) = torch.autograd.grad(result.sum(), surrogate)
    assert torch.equal(gradient, torch.ones_like(surrogate))


# --- the forward value ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", HARD)
def test_forward_is_exactly_one_hot_in_the_dtype_of_the_logits(
    name: str, dtype: torch.dtype
) -> None:
    """An environment executes it and a replay buffer stores it: 0.9999 would be a wrong action."""
    logits = make_logits(2000, 2, 3, dtype=dtype).requires_grad_()
    sample = ESTIMATORS[name](logits, generator=torch.Generator().manual_seed(0))
    assert sample.one_hot.dtype == sample.probs.dtype == dtype
    assert sample.index.dtype == torch.int64
    assert sample.index.shape == (2000, 2)
    assert is_exactly_one_hot(sample.one_hot)
    assert torch.equal(sample.one_hot.argmax(-1), sample.index)


@pytest.mark.parametrize("name", RELAXED)
def test_relaxed_forward_is_a_softmax(name: str) -> None:
    """The two exceptions: the vector is soft, the index is still an exact draw (Gumbel-max)."""
    logits, noise = make_logits(50, 2, 3), make_noise(name, (50, 2, 3))
    sample = ESTIMATORS[name](logits, temperature=0.7, noise=noise)
    scores = {"gumbel_softmax": logits + noise, "probabilities": logits}[name]
    torch.testing.assert_close(sample.one_hot, (scores / 0.7).softmax(-1))
    assert torch.equal(sample.index, (logits + noise).argmax(-1))
    assert ESTIMATORS[name].is_relaxed


@pytest.mark.parametrize("name", NAMES)
def test_a_tie_goes_to_the_first_category_alone(name: str) -> None:
    """`scores == max` would give two hot entries (a bug of a published code)."""
    noise = torch.zeros_like(make_noise(name, (6, 4)))
    sample = ESTIMATORS[name](torch.zeros(6, 4), noise=noise)
    assert torch.equal(sample.index, torch.zeros(6, dtype=torch.int64))


@pytest.mark.parametrize("name", HARD)
def test_a_tie_is_one_hot(name: str) -> None:
    """The vector of a tie has one entry too."""
    noise = torch.zeros_like(make_noise(name, (6, 4)))
    sample = ESTIMATORS[name](torch.zeros(6, 4), noise=noise)
    assert torch.equal(sample.one_hot, torch.eye(4)[0].expand(6, 4))


@pytest.mark.parametrize("name", NAMES)
def test_a_single_category_has_no_gradient(name: str) -> None:
    """N = 1: the only category is taken, and there is nothing to change."""
    logits = make_logits(3, 1).requires_grad_()
    sample = ESTIMATORS[name](logits)
    (gradient,) = torch.autograd.grad(sample.one_hot.sum(), logits)
    assert torch.equal(sample.one_hot, torch.ones(3, 1))
    assert torch.equal(gradient, torch.zeros(3, 1))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_passes_through(name: str) -> None:
    """A filter that leaves no row must not crash the loss."""
    logits = torch.zeros(0, 2, 3, requires_grad=True)
    sample = ESTIMATORS[name](logits, mask=torch.ones(2, 3, dtype=torch.bool))
    sample.one_hot.sum().backward()
    assert sample.one_hot.shape == (0, 2, 3)
    assert sample.index.shape == (0, 2)
    assert logits.grad.shape == (0, 2, 3)


@pytest.mark.parametrize("name", NAMES)
def test_non_contiguous_logits_equal_contiguous_ones(name: str) -> None:
    """A published implementation fails here by `.view`."""
    strided = make_logits(4, 3, 5).transpose(0, 2).requires_grad_()
    packed = strided.detach().contiguous().requires_grad_()
    noise, incoming = make_noise(name, (5, 3, 4)), make_logits(5, 3, 4, seed=2)
    assert not strided.is_contiguous()
    samples = [ESTIMATORS[name](logits, noise=noise) for logits in (strided, packed)]
    gradients = [
        torch.autograd.grad((sample.one_hot * incoming).sum(), logits)[0]
        for sample, logits in zip(samples, (strided, packed), strict=True)
    ]
    assert torch.equal(samples[0].one_hot, samples[1].one_hot)
    torch.testing.assert_close(gradients[0], gradients[1])


# --- the law of the sample ------------------------------------------------------------------------


def chi_square_p(index: Tensor, probs: Tensor) -> float:
    """Return the p-value of categories `[M]` against the probabilities `[N]`."""
    counts = torch.bincount(index, minlength=len(probs)).double()
    return float(stats.chisquare(counts.numpy(), (probs * len(index)).numpy()).pvalue)


@pytest.mark.parametrize("name", NAMES)
def test_sample_frequencies_match_softmax(name: str) -> None:
    """100,000 draws; the seed is fixed, so a p-value under 1e-4 is a wrong law, not bad luck.

    The gradient's temperature is not 1: it must not reach the draw.
    """
    options = {"num_samples": 1} if name == "gumbel_rao" else {}
    logits = torch.tensor([1.0, -1.0, 0.0, 2.0, -3.0])
    generator = torch.Generator().manual_seed(0)
    sample = ESTIMATORS[name](
        logits.expand(100_000, 5), temperature=3.0, generator=generator, **options
    )
    assert chi_square_p(sample.index, logits.double().softmax(-1)) > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_masked_categories_are_never_drawn_and_the_rest_keeps_its_odds(name: str) -> None:
    """Frequencies are those of the softmax over the open categories."""
    logits = torch.tensor([1.0, 5.0, 0.0, 2.0])
    mask = torch.tensor([True, False, True, True])
    generator = torch.Generator().manual_seed(0)
    sample = ESTIMATORS[name](logits.expand(50_000, 4), mask=mask, generator=generator)
    assert int((sample.index == 1).sum()) == 0
    assert float(sample.probs[:, 1].abs().max()) == 0.0
    assert float(sample.one_hot[:, 1].abs().max()) == 0.0
    kept = torch.tensor([0, -1, 1, 2])[sample.index]
    assert chi_square_p(kept, logits[mask].double().softmax(-1)) > 1e-4


def test_factors_and_rows_are_drawn_independently() -> None:
    """Two factors of one row, and one factor of two rows: all joint cells at their product."""
    logits = torch.tensor([[0.0, 1.0], [0.5, -0.5]]).expand(50_000, 2, 2)
    index = ESTIMATORS["straight_through"](logits, generator=torch.Generator().manual_seed(0)).index
    first, second = logits[0].double().softmax(-1)
    joint = (first[:, None] * second[None, :]).flatten()
    assert chi_square_p(index[:, 0] * 2 + index[:, 1], joint) > 1e-4
    rows = (first[:, None] * first[None, :]).flatten()
    assert chi_square_p(index[::2, 0] * 2 + index[1::2, 0], rows) > 1e-4


def test_decoupled_forward_temperature_changes_the_draw() -> None:
    """D ~ softmax(logits / forward_temperature), and `probs` says so."""
    logits = torch.tensor([1.0, -1.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    sample = ESTIMATORS["decoupled_straight_through"](
        logits.expand(100_000, 3), forward_temperature=0.5, generator=generator
    )
    torch.testing.assert_close(sample.probs[0], (logits / 0.5).softmax(-1))
    assert chi_square_p(sample.index, (logits.double() / 0.5).softmax(-1)) > 1e-4
    assert chi_square_p(sample.index, logits.double().softmax(-1)) < 1e-12


def test_decoupled_at_its_default_is_straight_through() -> None:
    """Forward temperature 1: same sample, same gradient, at any backward temperature."""
    logits, noise = make_logits(6, 4).requires_grad_(), make_noise("straight_through", (6, 4))
    incoming = make_logits(6, 4, seed=2)
    names = ("decoupled_straight_through", "straight_through")
    samples = [ESTIMATORS[name](logits, temperature=0.6, noise=noise) for name in names]
    gradients = [torch.autograd.grad((s.one_hot * incoming).sum(), logits)[0] for s in samples]
    assert torch.equal(samples[0].index, samples[1].index)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_reproduces_the_sample(name: str) -> None:
    """Same seed, same sample, without touching torch's global state."""
    logits = make_logits(64, 2, 3, dtype=torch.float32)
    state = torch.random.get_rng_state()
    draws = [
        ESTIMATORS[name](logits, generator=torch.Generator().manual_seed(seed)).index
        for seed in (3, 3, 4)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_injected_noise_decides_the_sample(name: str) -> None:
    """No randomness is left, and the index is argmax(logits + noise)."""
    logits, noise = make_logits(64, 2, 3), make_noise(name, (64, 2, 3))
    first, second = (ESTIMATORS[name](logits, noise=noise) for _ in range(2))
    assert torch.equal(first.one_hot, second.one_hot)
    drawn = noise[0] if name == "gumbel_rao" else noise
    assert torch.equal(first.index, (logits + drawn).argmax(-1))


# --- numerics -------------------------------------------------------------------------------------


def test_gumbel_noise_has_the_gumbel_law_and_is_finite() -> None:
    """Kolmogorov-Smirnov against scipy's Gumbel, and 20 million draws without an infinity."""
    generator = torch.Generator().manual_seed(0)
    noise = sample_gumbel((20_000_000,), torch.device("cpu"), generator)
    assert noise.dtype == torch.float32
    assert bool(noise.isfinite().all())
    assert stats.kstest(noise[:200_000].double().numpy(), stats.gumbel_r.cdf).pvalue > 1e-4
    for low, high in ((10.0, torch.inf), (-torch.inf, -2.5)):  # the tails, within five sigma
        share = float(stats.gumbel_r.cdf(high) - stats.gumbel_r.cdf(low))
        count = int(((noise > low) & (noise < high)).sum())
        assert abs(count - 2e7 * share) < 5 * (2e7 * share) ** 0.5


@pytest.mark.parametrize("uniform", [0.0, 1.0])
def test_gumbel_noise_is_finite_at_the_ends_of_the_uniform_draw(
    monkeypatch, uniform: float
) -> None:
    """Which some devices include."""
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, uniform))
    assert bool(sample_gumbel((3,), torch.device("cpu")).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_over_millions_of_draws(dtype: torch.dtype) -> None:
    """Half-precision exponentials round to zero about once in 10 million draws: infinite noise."""
    logits = torch.zeros(2_000_000, 4, dtype=dtype, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    sample = ESTIMATORS["straight_through_gumbel"](logits, generator=generator, validate=False)
    sample.one_hot[:, 0].float().sum().backward()
    assert bool(logits.grad.isfinite().all())
    assert is_exactly_one_hot(sample.one_hot)
    share = float((sample.index == 0).float().mean())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 2e6) ** 0.5  # five standard errors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_get_float32_noise(name: str, dtype: torch.dtype) -> None:
    """The same generator gives the same draw as for the same values in float32."""
    logits = make_logits(5000, 4, dtype=dtype)
    half, full = (
        ESTIMATORS[name](values, generator=torch.Generator().manual_seed(0))
        for values in (logits, logits.float())
    )
    assert torch.equal(half.index, full.index)
    torch.testing.assert_close(half.one_hot, full.one_hot.to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_computed_in_float64(name: str) -> None:
    """A detour through float32 would cost nine digits, and finite differences with them."""
    logits, noise = make_logits(4, 3), make_noise(name, (4, 3))
    sample = ESTIMATORS[name](logits, noise=noise)
    assert sample.one_hot.dtype == sample.probs.dtype == torch.float64
    torch.testing.assert_close(sample.probs, logits.softmax(-1), rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_stay_finite(name: str, dtype: torch.dtype) -> None:
    """A saturated policy (1e4 against -1e4) has value and gradient, both finite."""
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4]], dtype=dtype)
    logits = logits.repeat(100, 1).requires_grad_()
    sample = ESTIMATORS[name](logits, generator=torch.Generator().manual_seed(0))
    incoming = torch.tensor([1.0, -2.0, 3.0], dtype=dtype)
    (sample.one_hot * incoming).sum().backward()
    assert bool(sample.one_hot.isfinite().all())
    assert bool(logits.grad.isfinite().all())
    assert torch.equal(sample.index[::3], torch.zeros(100, dtype=torch.int64))


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_masked_categories_have_zero_probability_and_zero_gradient(
    name: str, dtype: torch.dtype, temperature: float
) -> None:
    """-inf would make entropy and gradients NaN; here a closed logit gets exactly zero."""
    temperature = max(temperature, ESTIMATORS[name].min_temperature)
    logits = make_logits(200, 3, 4, dtype=dtype).requires_grad_()
    sample = ESTIMATORS[name](
        logits, temperature=temperature, mask=MASK, generator=torch.Generator().manual_seed(0)
    )
    incoming = make_logits(200, 3, 4, seed=2, dtype=dtype)
    (sample.one_hot * incoming).sum().backward()
    closed = (~MASK).expand(200, 3, 4)
    assert bool((sample.one_hot[closed] == 0).all())
    assert bool((sample.probs[closed] == 0).all())
    assert bool(logits.grad.isfinite().all())
    assert bool((logits.grad[closed] == 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_an_infinite_gradient_at_a_masked_category_is_dropped(name: str) -> None:
    """E.g. that of <one_hot, log_probs> in float16, where the log-probability overflows."""
    logits = make_logits(5, 3, 4).requires_grad_()
    sample = ESTIMATORS[name](logits, mask=MASK)
    incoming = torch.ones(5, 3, 4, dtype=torch.float64).masked_fill(~MASK, -INF)
    sample.one_hot.backward(incoming)
    assert bool(logits.grad.isfinite().all())
    assert bool((logits.grad[(~MASK).expand(5, 3, 4)] == 0).all())


def test_the_logit_of_a_masked_category_may_be_anything() -> None:
    """A network's output behind the mask is not read: not even a NaN there is an error."""
    logits = torch.tensor([[0.0, float("nan"), 1.0, INF]], requires_grad=True)
    mask = torch.tensor([True, False, True, False])
    sample = ESTIMATORS["straight_through_gumbel"](logits, mask=mask)
    sample.one_hot[:, 0].sum().backward()
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_without_validation_no_value_is_read(name: str) -> None:
    """On the meta device every read of a value raises; a training loop must not wait for one."""
    logits = torch.zeros(5, 2, 3, device="meta", requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool, device="meta")
    sample = ESTIMATORS[name](logits, mask=mask, validate=False)
    sample.one_hot.sum().backward()
    assert sample.one_hot.device.type == logits.grad.device.type == "meta"


# --- the registry and the errors ------------------------------------------------------------------


def test_the_registry_is_the_design() -> None:
    """Names, default temperatures, lower limits and options that configs are written against."""
    table = {
        name: (e.default_temperature, e.min_temperature, dict(e.options))
        for name, e in ESTIMATORS.items()
    }
    assert table == {
        "gumbel_softmax": (1.0, 0.0, {}),
        "probabilities": (1.0, 0.0, {}),
        "straight_through": (1.0, 0.0, {}),
        "straight_through_gumbel": (1.0, 0.0, {}),
        "reinmax": (1.0, 1.0, {}),
        "gumbel_rao": (0.5, 0.0, {"num_samples": 10}),
        "gapped_straight_through": (1.0, 0.0, {"gap": 1.0}),
        "decoupled_straight_through": (1.0, 0.0, {"forward_temperature": 1.0}),
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_default_temperature_is_the_one_used(name: str) -> None:
    """`temperature=None` is the estimator's own default, not a global one."""
    logits, noise = make_logits(6, 4).requires_grad_(), make_noise(name, (6, 4))
    incoming = make_logits(6, 4, seed=2)
    temperatures = (None, ESTIMATORS[name].default_temperature)
    gradients = [
        torch.autograd.grad(
            (ESTIMATORS[name](logits, temperature=t, noise=noise).one_hot * incoming).sum(), logits
        )[0]
        for t in temperatures
    ]
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("name", "temperature"),
    [*itertools.product(NAMES, [0.0, -1.0, INF, float("nan")]), ("reinmax", 0.99)],
)
def test_a_temperature_out_of_range_is_refused_by_name(name: str, temperature: float) -> None:
    """Temperature 0 is a silent NaN in torch; the message has the value, the name, the range."""
    low = ">= 1" if name == "reinmax" else "> 0"
    message = f"temperature {temperature!r} of estimator '{name}'.* must be {low} and finite"
    with pytest.raises(ValueError, match=message):
        ESTIMATORS[name](torch.zeros(2, 3), temperature=temperature)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("bad", "word"), [(float("nan"), "NaN"), (INF, "infinite")])
def test_bad_logits_are_named_with_their_row(name: str, bad: float, word: str) -> None:
    """A NaN is the network's fault and must not turn up as a strange action."""
    logits = torch.zeros(4, 2, 3)
    logits[2, 1, 0] = bad
    with pytest.raises(ValueError, match=rf"logits contain {word} values, first in row \[2, 1\]"):
        ESTIMATORS[name](logits)


def test_a_logit_of_minus_infinity_is_sent_to_mask() -> None:
    """The habit of other codes is an error here; the message says what to do instead."""
    with pytest.raises(ValueError, match=r"infinite.*pass mask=, not a logit of -inf"):
        ESTIMATORS["straight_through"](torch.tensor([[0.0, -INF]]))


@pytest.mark.parametrize("name", NAMES)
def test_an_all_masked_row_is_named(name: str) -> None:
    """No action is left in factor 1 of row 2."""
    mask = torch.ones(4, 2, 3, dtype=torch.bool)
    mask[2, 1] = False
    with pytest.raises(ValueError, match=r"every category is masked in row \[2, 1\]"):
        ESTIMATORS[name](torch.zeros(4, 2, 3), mask=mask)


def test_check_logits_accepts_a_broadcast_mask() -> None:
    """One `[N]` mask for the whole batch: refused when it closes everything, else fine."""
    check_logits(torch.zeros(4, 2, 3), torch.tensor([True, False, False]))
    with pytest.raises(ValueError, match=r"every category is masked in row \[0, 0\]"):
        check_logits(torch.zeros(4, 2, 3), torch.tensor([False, False, False]))


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused_with_the_known_ones(name: str) -> None:
    """A misspelt option must not be ignored."""
    known = ", ".join(ESTIMATORS[name].options) or "none"
    with pytest.raises(TypeError, match=f"'{name}' has no option 'gpa'; its options: {known}"):
        ESTIMATORS[name](torch.zeros(2, 3), gpa=1.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gumbel_rao", {"num_samples": 0}),
        ("gumbel_rao", {"num_samples": 2.5}),
        ("gapped_straight_through", {"gap": -1.0}),
        ("gapped_straight_through", {"gap": float("nan")}),
        ("decoupled_straight_through", {"forward_temperature": 0.0}),
        ("decoupled_straight_through", {"forward_temperature": INF}),
    ],
)
def test_an_option_out_of_range_is_refused(name: str, options: dict[str, float]) -> None:
    """The message has the option, the value and the estimator."""
    ((option, value),) = options.items()
    with pytest.raises(ValueError, match=f"{option} {value!r} of '{name}' must be"):
        ESTIMATORS[name](torch.zeros(2, 3), **options)


@pytest.mark.parametrize("name", NAMES)
def test_noise_of_the_wrong_shape_is_refused(name: str) -> None:
    """Broadcast noise would give every row of the batch the same sample."""
    with pytest.raises(ValueError, match=rf"noise has shape \(1, 3\); estimator '{name}' needs"):
        ESTIMATORS[name](torch.zeros(2, 3), noise=torch.zeros(1, 3))


@pytest.mark.parametrize("name", NAMES)
def test_masks_and_logits_of_another_kind_are_refused(name: str) -> None:
    """Masks of Gymnasium's infos are int8, which torch refuses without a word about masks."""
    estimate = ESTIMATORS[name]
    with pytest.raises(TypeError, match=r"mask has dtype torch\.int8; it must be torch\.bool"):
        estimate(torch.zeros(2, 3), mask=torch.ones(2, 3, dtype=torch.int8))
    for shape in ((2, 4), (3, 3), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"mask has shape \(.*, \(2, 3\)"):
            estimate(torch.zeros(2, 3), mask=torch.ones(shape, dtype=torch.bool))
    for shape in ((1, 3), (2, 1), (3,), (2, 3)):
        assert estimate(torch.zeros(2, 3), mask=torch.ones(shape, dtype=torch.bool)).index.numel()
    for shape in ((), (2, 0)):
        with pytest.raises(ValueError, match=r"logits of shape \(.*\) have no categories"):
            estimate(torch.zeros(shape))
