"""The lab measures what theory says: no bias where there is none, known variances, known plateaus.

The oracle is the sum over all actions, written here anew for a handful of them.
"""

import itertools
import math
import time

import pytest
import torch
from gymnasium import spaces

from rl_gumbel.actions import ActionLayout
from rl_gumbel.cli.options import EXPERIMENTS as NAMES
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.estimators import ESTIMATORS
from rl_gumbel.lab import EXPERIMENTS, figures, sweep
from rl_gumbel.lab.measure import (
    BASELINES,
    Method,
    exact_gradient,
    logit_gradients,
    measure,
    microseconds,
)
from rl_gumbel.lab.objectives import OBJECTIVES, CriticObjective
from rl_gumbel.lab.polynomial import POWERS, Polynomial, loss_at, plateau, train
from rl_gumbel.lab.sweep import Setting, fit_critic, make_layout
from rl_gumbel.networks import ConcatCritic, MultilinearCritic

LAYOUT = make_layout(3, 3)
SHAPE = (2, 3, 3)


def logits_of(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_objective(name, shape=SHAPE):
    if name in OBJECTIVES:
        return OBJECTIVES[name](shape, torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    network = {"concat": ConcatCritic, "multilinear critic": MultilinearCritic}[name]
    critic = network(4, make_layout(*shape[1:]), [8, 8]).requires_grad_(False)
    return CriticObjective(critic, torch.randn(shape[0], 4), make_layout(*shape[1:]))


def enumerate_actions(num_factors, num_categories):
    """Every joint action as one-hots `[J, K, N]`."""
    indices = itertools.product(range(num_categories), repeat=num_factors)
    return torch.eye(num_categories)[torch.tensor(list(indices))]


def enumerated_gradient(objective, logits):
    """`[S, K N]`: sum over actions of f(a) times the slope of p(a), p written out."""
    logits = logits.clone().requires_grad_()
    joint = enumerate_actions(*logits.shape[1:]).unsqueeze(1)
    probability = (joint * logits.softmax(-1)).sum(-1).prod(-1)  # [J, S]
    values = objective(joint.expand(-1, len(logits), -1, -1)).detach()
    return torch.autograd.grad((probability * values).sum(), logits)[0].flatten(1)


def errors_of(method, objective, logits, draws, seed=0):
    layout = make_layout(*logits.shape[1:])
    generator = torch.Generator().manual_seed(seed)
    draw = logit_gradients(method, objective, logits, layout, generator)
    return measure(draw, exact_gradient(objective, logits, layout), draws)


# --- objectives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OBJECTIVES, "concat", "multilinear critic"])
@pytest.mark.parametrize("num_factors", [1, 2, 3])
def test_the_gradient_of_the_expectation_is_the_enumerated_one(name, num_factors):
    """Closed forms are where a mistake would make every number of the lab wrong."""
    shape = (2, num_factors, 3)
    objective, logits = make_objective(name, shape), logits_of(shape)
    gradient = exact_gradient(objective, logits, make_layout(num_factors, 3))
    torch.testing.assert_close(gradient, enumerated_gradient(objective, logits))


@pytest.mark.parametrize("name", [*OBJECTIVES, "concat"])
def test_an_objective_takes_any_leading_dimensions(name):
    objective = make_objective(name)
    one_hot = LAYOUT.index_to_one_hot(torch.randint(3, (4, 5, 2, 3)))
    values = objective(one_hot)
    assert values.shape == (4, 5, 2)
    torch.testing.assert_close(values[1, 2], objective(one_hot[1, 2]))


def test_a_critic_of_too_many_actions_is_averaged_by_local_expectation():
    """5^10 joint actions; the closed form of a critic that happens to be linear is the oracle."""
    layout = make_layout(10, 5)
    network = MultilinearCritic(4, layout, [8]).requires_grad_(False)
    features, logits = torch.randn(2, 4), logits_of((2, 10, 5))
    exact = exact_gradient(CriticObjective(network, features, layout), logits, layout)
    network.is_multilinear = False  # hides what it is
    sampled = CriticObjective(network, features, layout)
    assert not sampled.is_exact
    torch.testing.assert_close(exact_gradient(sampled, logits, layout), exact, rtol=0.1, atol=0.01)


def test_a_fitted_critic_has_learned_the_values():
    critic, fit = fit_critic("critic concat, first layer", Setting(0, "mlp"), 0)
    assert 0.9 < fit <= 1
    assert critic.is_exact


# --- measuring ------------------------------------------------------------------------------------


def test_errors_of_a_known_distribution_are_known():
    """g = (3, 4) + noise of deviation 1 in two dimensions, shifted by (1, 0): |g|^2 = 25."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.tensor([[3.0, 4.0]])

    def draw(count):
        return reference + torch.tensor([1.0, 0.0]) + torch.randn(count, 1, 2, generator=generator)

    errors = measure(draw, reference, 20_000)
    assert errors.draws == 20_000
    assert errors.bias == pytest.approx(1 / 5, rel=0.05)
    assert errors.bias_squared == pytest.approx(1 / 25, rel=0.1)
    assert errors.variance == pytest.approx(2 / 25, rel=0.05)
    assert errors.mean_squared_error == pytest.approx(3 / 25, rel=0.05)
    cosine = (4 * 3 + 4 * 4) / (5 * math.sqrt(32))
    assert errors.cosine_of_mean == pytest.approx(cosine, abs=0.003)
    assert errors.cosine < cosine


def test_standard_errors_are_the_scatter_of_repetitions():
    """60 repetitions of 64 samples: their own deviation, against the mean of the estimated ones."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.ones(1, 3)
    repeats = [
        measure(lambda n: 1.5 + torch.randn(n, 1, 3, generator=generator), reference, 64)
        for _ in range(60)
    ]
    for name in ("bias_squared", "variance", "mean_squared_error", "cosine"):
        scatter = torch.tensor([getattr(errors, name) for errors in repeats]).std()
        stated = torch.tensor([getattr(errors, f"{name}_se") for errors in repeats]).mean()
        assert stated == pytest.approx(float(scatter), rel=0.3), name


def test_no_bias_is_measured_as_none_although_the_mean_of_few_samples_is_off():
    reference = torch.ones(1, 5)
    generator = torch.Generator().manual_seed(3)
    repeats = [
        measure(lambda n: 1 + 4 * torch.randn(n, 1, 5, generator=generator), reference, 32)
        for _ in range(40)
    ]
    mean = sum(errors.bias_squared for errors in repeats) / len(repeats)
    # The squared distance of the mean of 32 samples is 16 / 32, every time.
    assert abs(mean) < 0.1
    assert sum(errors.bias == 0 for errors in repeats) > 30


# --- what theory says about methods ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "objective"),
    [
        ("straight_through", "linear"),
        ("straight_through", "multilinear"),
        ("straight_through", "multilinear critic"),
        ("probabilities", "multilinear"),
        ("reinmax", "quadratic"),
        *itertools.product(BASELINES, ["mlp"]),
    ],
)
def test_unbiased_where_theory_says_so(method, objective):
    errors = errors_of(Method(method), make_objective(objective), logits_of(SHAPE), 4000)
    assert abs(errors.bias_squared) <= 3 * errors.bias_squared_se + 1e-9


@pytest.mark.parametrize(
    ("method", "objective"),
    [
        ("straight_through_gumbel", "linear"),
        ("gumbel_softmax", "linear"),
        ("straight_through", "quadratic"),
        ("reinmax", "mlp"),
        ("probabilities", "quadratic"),
    ],
)
def test_biased_where_theory_says_so(method, objective):
    errors = errors_of(Method(method), make_objective(objective), logits_of(SHAPE), 2000)
    assert errors.bias_squared > 5 * errors.bias_squared_se
    assert errors.bias == pytest.approx(math.sqrt(errors.bias_squared))


def test_straight_through_has_no_variance_on_a_linear_objective():
    errors = errors_of(Method("straight_through"), make_objective("linear"), logits_of(SHAPE), 64)
    assert errors.variance == pytest.approx(0, abs=1e-9)
    assert errors.cosine == pytest.approx(1)


@pytest.mark.parametrize("with_baseline", [False, True])
def test_the_variance_of_the_score_function_is_the_enumerated_one(with_baseline):
    """sum_a p(a) |(f(a) - b) (a - p)|^2 - |g|^2 over the nine actions of two factors."""
    objective, logits = make_objective("mlp", (1, 2, 3)), logits_of((1, 2, 3))
    joint = enumerate_actions(2, 3).unsqueeze(1)
    probs = logits.softmax(-1)
    probability = (joint * probs).sum(-1).prod(-1)  # [J, 1]
    values = objective(joint)
    if with_baseline:
        values = values - (probability * values).sum()
    score = (values[..., None, None] * (joint - probs)).flatten(1)
    mean = (probability * score).sum(0)
    variance = (probability.squeeze(1) * score.square().sum(-1)).sum() - mean.square().sum()
    name = "score_function_baseline" if with_baseline else "score_function"
    errors = errors_of(Method(name), objective, logits, 20_000)
    expected = float(variance / mean.square().sum())
    assert errors.variance == pytest.approx(expected, abs=3 * errors.variance_se)
    assert errors.variance_se < 0.05 * expected


def test_leaving_one_out_is_the_average_of_four_scores_with_the_others_as_baseline():
    """Of a pair of actions: the enumeration over all quadruples of one binary factor."""
    logits, objective = logits_of((1, 1, 2)), make_objective("linear", (1, 1, 2))
    probs = logits.softmax(-1).flatten()
    values = objective(torch.eye(2)[:, None, None]).flatten()
    first = second = 0.0
    for actions in itertools.product(range(2), repeat=4):
        chance = math.prod(float(probs[a]) for a in actions)
        total = sum(float(values[a]) for a in actions)
        slope = sum(
            (float(values[a]) - (total - float(values[a])) / 3) * ((a == 0) - float(probs[0]))
            for a in actions
        )
        first, second = first + chance * slope / 4, second + chance * (slope / 4) ** 2
    errors = errors_of(Method("leave_one_out"), objective, logits, 20_000)
    expected = (second - first**2) / first**2
    assert errors.variance == pytest.approx(expected, abs=3 * errors.variance_se)


def test_local_expectation_sums_over_one_factor_and_is_exact_for_one():
    errors = errors_of(
        Method("local_expectation"), make_objective("mlp", (2, 1, 4)), logits_of((2, 1, 4)), 16
    )
    assert errors.mean_squared_error == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", [*ESTIMATORS, *BASELINES])
def test_every_method_respects_padding(name):
    """Factors of 2 and 3 categories: the slope at the padding is zero, and nothing is NaN."""
    layout = ActionLayout.from_space(spaces.MultiDiscrete([2, 3]))
    critic = ConcatCritic(4, layout, [8]).requires_grad_(False)
    objective = CriticObjective(critic, torch.randn(5, 4), layout)
    draw = logit_gradients(Method(name), objective, torch.randn(5, 2, 3), layout)
    gradient = draw(3).unflatten(-1, (2, 3))
    assert gradient.isfinite().all()
    assert (gradient[..., 0, 2] == 0).all()
    assert (gradient[..., 1, :] != 0).any()


def test_the_methods_of_the_lab_are_all_estimators_and_the_baselines():
    rows = list(Setting(0, "linear").rows("x", [Method(n) for n in (*ESTIMATORS, *BASELINES)], 16))
    assert [row["method"] for row in rows] == [*ESTIMATORS, *BASELINES]
    evaluations = {row["method"]: row["evaluations"] for row in rows}
    assert evaluations["straight_through"] == 1
    assert (evaluations["leave_one_out"], evaluations["local_expectation"]) == (4, 16)


def test_time_is_that_of_the_processor_in_microseconds():
    """A busy call of 10 ms beside one that only waits."""

    def work():
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass

    def wait():
        time.sleep(0.02)
        work()

    assert 1e4 <= microseconds(work) < 1.3e4
    assert 1e4 <= microseconds(wait) < 1.3e4


# --- the polynomial programme ---------------------------------------------------------------------


@pytest.mark.parametrize(("power", "expected"), [(1.5, 0.3522), (2.0, 0.2475), (3.0, 0.1213)])
def test_plateaus_have_the_published_derivation(power, expected):
    """Straight-through rests where q f'(1) = -(1 - q) f'(0); checked by hand for the square."""
    assert plateau("straight_through", power) == pytest.approx(expected, abs=5e-5)
    assert plateau("reinmax", power) == pytest.approx(0.45**power)
    assert plateau("probabilities", 2.0) == pytest.approx(0.45 * 0.55**2 + 0.55 * 0.45**2)
    assert plateau("straight_through_gumbel", power) is None


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("method", ["straight_through", "probabilities"])
def test_the_mean_gradient_vanishes_at_the_plateau(method, power):
    """The closed form is a fixed point of the mean gradient, of both signs beside it."""
    rest = (plateau(method, power) - 0.45**power) / (0.55**power - 0.45**power)
    slopes = []
    for prob in (rest - 0.02, rest, rest + 0.02):
        logits = torch.tensor([[math.log(prob), math.log(1 - prob)]]).expand(40_000, 1, 2).clone()
        logits.requires_grad_()
        policy = FactoredCategorical(logits)
        sample = policy.rsample(method, generator=torch.Generator().manual_seed(0))
        Polynomial(power)(sample.one_hot).mean().backward()
        slopes.append(float(logits.grad.sum((0, 1))[0]))
    assert slopes[0] < 0 < slopes[2]
    assert abs(slopes[1]) < 0.3 * min(-slopes[0], slopes[2])


@pytest.mark.parametrize("method", ["straight_through", "reinmax"])
def test_training_ends_at_the_plateau(method):
    *_, last = train(Method(method), 2.0, seed=0)
    gap = loss_at(0.5, 2.0) - 0.45**2
    assert last["loss"] == pytest.approx(last["plateau"], abs=0.03 * gap)
    assert last["step"] == 200


# --- experiments ----------------------------------------------------------------------------------

ERRORS = {
    "draws",
    "bias",
    "bias_squared",
    "bias_squared_se",
    "variance",
    "variance_se",
    "mean_squared_error",
    "mean_squared_error_se",
    "cosine",
    "cosine_se",
    "cosine_of_mean",
}


def test_the_command_line_knows_the_experiments():
    """Their names stand there as literals, so that help imports nothing heavy."""
    assert tuple(EXPERIMENTS) == NAMES
    assert all(callable(getattr(figures, name)) for name in EXPERIMENTS)


@pytest.mark.parametrize(
    ("name", "column", "constant"),
    [
        ("temperature", "temperature", "TEMPERATURES"),
        ("factors", "factors", "FACTOR_COUNTS"),
        ("categories", "categories", "CATEGORY_COUNTS"),
        ("sharpness", "sharpness", "SHARPNESSES"),
    ],
)
def test_an_experiment_varies_what_it_is_named_for(name, column, constant, monkeypatch):
    monkeypatch.setattr(sweep, constant, (1, 2))
    rows = list(EXPERIMENTS[name](16, 0))
    assert rows[0].keys() == ERRORS | {"experiment", "method", "temperature", "objective"} | {
        "factors", "categories", "sharpness", "reference", "instances", "evaluations",
    }  # fmt: skip
    assert {row["objective"] for row in rows} == {"linear", "quadratic", "mlp"}
    for method in ("straight_through", "straight_through_gumbel"):
        values = [row[column] for row in rows if row["method"] == method]
        assert values == [1, 2] * 3


def test_an_experiment_repeats_itself_and_not_with_another_seed(monkeypatch):
    monkeypatch.setattr(sweep, "SHARPNESSES", (1.0,))
    one, again, other = (list(sweep.sharpness(16, seed)) for seed in (0, 0, 1))
    assert one == again
    assert one != other
