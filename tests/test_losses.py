"""The losses against numbers by hand, enumeration and finite differences."""

import itertools
import math

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import explained_variance as peer_explained_variance
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.losses import (
    aggregate,
    categorical_critic_loss,
    clipped_surrogate,
    critic_loss,
    exact_value,
    explained_variance,
    generalized_advantage,
    joint_one_hots,
    kl_constrained_loss,
    lambda_returns,
    local_expectation_value,
    multiplier_loss,
    restarting_discounts,
    soft_bellman_target,
    window_return,
)
from rl_gumbel.networks import hl_gauss

BATCH = 2
SIZES = pytest.mark.parametrize("sizes", [(4,), (2, 3), (3, 1, 2), (2, 2, 2)], ids=str)
CPU = torch.device("cpu")


def make_layout(sizes: tuple[int, ...]) -> ActionLayout:
    return ActionLayout.from_space(spaces.MultiDiscrete(list(sizes)))


def random_logits(layout: ActionLayout) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, layout.num_factors, layout.num_categories)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    return logits.masked_fill(~layout.valid, 0.0).requires_grad_()


class Table:
    """An arbitrary value of each joint action and row, nothing like linear in the one-hots.

    A category that its factor does not have is worth a million, which must not show.
    """

    def __init__(self, layout: ActionLayout) -> None:
        generator = torch.Generator().manual_seed(1)
        shape = (BATCH, *(layout.num_categories for _ in layout.sizes))
        self.values = torch.full(shape, 1e6, dtype=torch.float64)
        real = (slice(None), *(slice(size) for size in layout.sizes))
        values = torch.randn((BATCH, *layout.sizes), dtype=torch.float64, generator=generator)
        self.values[real] = values

    def __call__(self, one_hot: Tensor) -> Tensor:
        """Return `[M, B]` values of one-hots `[M, B, K, N]`."""
        index = one_hot.argmax(-1)
        rows = torch.arange(BATCH).expand(index.shape[:2])
        return self.values[(rows, *index.unbind(-1))]


def sum_of_entries(one_hot: Tensor) -> Tensor:
    return one_hot.sum((-2, -1))


def enumerated_value(layout: ActionLayout, logits: Tensor, table: Table) -> Tensor:
    """E[Q] written as the plain sum over joint actions, softmax by softmax."""
    terms = []
    for joint in itertools.product(*(range(size) for size in layout.sizes)):
        probability = torch.ones(BATCH, dtype=torch.float64)
        for factor, category in enumerate(joint):
            probs = logits[:, factor, : layout.sizes[factor]].softmax(-1)
            probability = probability * probs[:, category]
        terms.append(probability * table.values[(slice(None), *joint)])
    return torch.stack(terms).sum(0)


def distribution(layout: ActionLayout, logits: Tensor) -> FactoredCategorical:
    return FactoredCategorical(logits, layout.mask)


# --- numbers by hand --------------------------------------------------------------------------


def test_soft_bellman_target_by_hand():
    """r + discount V; a terminated row stops at r."""
    target = soft_bellman_target(
        torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]), 0.9, torch.tensor([10.0, 20.0])
    )
    torch.testing.assert_close(target, torch.tensor([1 + 0.9 * 10, 2.0]))


def test_soft_bellman_target_takes_a_discount_for_each_row():
    """N-step returns that end early are discounted less."""
    target = soft_bellman_target(
        torch.zeros(2), torch.zeros(2), torch.tensor([0.9, 0.81]), torch.ones(2)
    )
    torch.testing.assert_close(target, torch.tensor([0.9, 0.81]))


def test_critic_loss_by_hand():
    """Member 0 errs by 1 and 3, member 1 by 0 and 2: (1 + 9) / 4 + (0 + 4) / 4."""
    values = torch.tensor([[1.0, 3.0], [0.0, -2.0]])
    assert critic_loss(values, torch.zeros(2)).item() == pytest.approx(3.5)


def test_categorical_critic_loss_by_hand():
    """Uniform logits cost log(bins) whatever the target; the members' losses add up."""
    loss = categorical_critic_loss(
        torch.zeros(2, 3, 4), torch.tensor([0.1, 2.0, 99.0]), torch.arange(4.0)
    )
    assert loss.item() == pytest.approx(2 * math.log(4))


def test_categorical_critic_loss_is_least_at_the_histogram_of_the_target():
    """Its gradient is the difference of the two distributions, hence zero there."""
    centers, target = torch.linspace(-1.0, 1.0, 9), torch.tensor([0.3, -0.7])
    logits = hl_gauss(target, centers).log()[None].requires_grad_()
    gradient = torch.autograd.grad(categorical_critic_loss(logits, target, centers), logits)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-7)
    uniform = torch.zeros(1, 2, 9, requires_grad=True)
    gradient = torch.autograd.grad(categorical_critic_loss(uniform, target, centers), uniform)[0]
    expected = (1 / 9 - hl_gauss(target, centers))[None] / 2  # the mean over two rows
    torch.testing.assert_close(gradient, expected)


NEVER = torch.zeros(3, 1, dtype=torch.bool)


def test_lambda_returns_by_hand():
    """Rewards 1, 2, 4; values after them 10, 20, 40; bonuses 1, 2, 3; gamma 1/2, lambda 1/4.

    G_2 = 4 + (3 + 40) / 2 = 25.5
    G_1 = 2 + (2 + 3/4 * 20 + 1/4 * 25.5) / 2 = 13.6875
    G_0 = 1 + (1 + 3/4 * 10 + 1/4 * 13.6875) / 2 = 6.9609375
    """
    returns = lambda_returns(
        torch.tensor([[1.0], [2.0], [4.0]]),
        NEVER,
        NEVER,
        torch.tensor([[10.0], [20.0], [40.0]]),
        torch.tensor([[1.0], [2.0], [3.0]]),
        0.5,
        0.25,
    )
    torch.testing.assert_close(returns, torch.tensor([[6.9609375], [13.6875], [25.5]]))


def test_lambda_returns_stop_at_a_termination_and_bootstrap_at_a_truncation():
    """Environment 0 terminates at step 1: G_1 = 2. Environment 1 is truncated there and takes
    only its own last state: G_1 = 2 + (2 + 20) / 2 = 13. What follows is another episode's."""
    ended = torch.tensor([[False, False], [True, False], [False, False]])
    returns = lambda_returns(
        torch.tensor([[1.0], [2.0], [1e6]]).expand(3, 2),
        ended,
        ended.flip(1),
        torch.tensor([[10.0], [20.0], [1e6]]).expand(3, 2),
        torch.tensor([[1.0], [2.0], [1e6]]).expand(3, 2),
        0.5,
        0.25,
    )
    torch.testing.assert_close(returns[1], torch.tensor([2.0, 13.0]))
    expected = [1 + (1 + 7.5 + 0.25 * following) / 2 for following in (2.0, 13.0)]
    torch.testing.assert_close(returns[0], torch.tensor(expected))


@pytest.mark.parametrize("trace_decay", [0.0, 1.0])
def test_lambda_returns_at_their_ends_are_one_step_and_monte_carlo(trace_decay):
    """Lambda 0 is the soft Bellman target; lambda 1 the discounted sum, no value but the last."""
    generator = torch.Generator().manual_seed(0)
    reward, value, bonus = torch.randn(3, 6, 4, generator=generator)
    terminated = torch.rand(6, 4, generator=generator) < 0.2
    none = torch.zeros_like(terminated)
    returns = lambda_returns(reward, terminated, none, value, bonus, 0.9, trace_decay)
    one_step = soft_bellman_target(reward, terminated.float(), 0.9, value + bonus)
    for env in range(4):
        for start in range(6):
            total, weight = torch.tensor(0.0), 1.0
            for step in range(start, 6):
                total = total + weight * reward[step, env]
                weight *= 0.9 * (1 - float(terminated[step, env]))
                total = total + weight * bonus[step, env]
            total = total + weight * value[5, env]
            expected = one_step[start, env] if trace_decay == 0 else total
            torch.testing.assert_close(returns[start, env], expected)


def test_kl_constrained_loss_by_hand():
    """Rows 0 and 1 climb (the bound is still inside), row 2 goes back: (-2 - 5 + 3 * 4) / 3."""
    value = torch.tensor([2.0, 5.0, 7.0], requires_grad=True)
    kl = torch.tensor([0.0, 0.5, 4.0], requires_grad=True)
    loss = kl_constrained_loss(value, kl, 0.5, torch.tensor(3.0))
    assert loss.item() == pytest.approx((-2 - 5 + 12) / 3)
    for_value, for_kl = torch.autograd.grad(loss, (value, kl))
    torch.testing.assert_close(for_value, torch.tensor([-1.0, -1.0, 0.0]) / 3)
    torch.testing.assert_close(for_kl, torch.tensor([0.0, 0.0, 3.0]) / 3)


def test_a_multiplier_grows_where_its_constraint_is_violated():
    """d/dl exp(l) * mean(slack) = exp(l) * mean(slack), and nothing for the slack."""
    log_coef = torch.tensor([math.log(2.0)], requires_grad=True)
    slack = torch.tensor([-0.5, 0.1], requires_grad=True)
    loss = multiplier_loss(log_coef, slack)
    assert loss.shape == ()
    gradient, for_slack = torch.autograd.grad(loss, (log_coef, slack), allow_unused=True)
    assert gradient.item() == pytest.approx(2 * -0.2)  # descent adds 0.4
    assert for_slack is None


def test_joint_one_hots_are_every_joint_action_once():
    layout = make_layout((2, 3))
    index = joint_one_hots(layout, CPU).argmax(-1)
    expected = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert index.tolist() == expected
    torch.testing.assert_close(
        joint_one_hots(layout, CPU), layout.index_to_one_hot(torch.tensor(expected))
    )


# --- the exact value --------------------------------------------------------------------------


@SIZES
def test_exact_value_and_gradient_are_those_of_plain_enumeration(sizes):
    layout = make_layout(sizes)
    logits, table = random_logits(layout), Table(layout)
    value = exact_value(distribution(layout, logits), joint_one_hots(layout, CPU), table)
    oracle = enumerated_value(layout, logits, table)
    torch.testing.assert_close(value, oracle)
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    gradient, expected = (
        torch.autograd.grad(result @ weights, logits)[0] for result in (value, oracle)
    )
    torch.testing.assert_close(gradient, expected)
    assert (gradient.masked_select(~layout.valid) == 0).all()


@SIZES
def test_exact_value_has_the_gradient_of_finite_differences(sizes):
    layout = make_layout(sizes)
    table, joint = Table(layout), joint_one_hots(layout, CPU)

    def value(logits: Tensor) -> Tensor:
        return exact_value(distribution(layout, logits), joint, table)

    assert torch.autograd.gradcheck(value, random_logits(layout))


# --- local expectation gradients --------------------------------------------------------------


def gradient_of_sample(layout: ActionLayout, logits: Tensor, table: Table, index: Tensor) -> Tensor:
    value = local_expectation_value(distribution(layout, logits), index, layout, table)
    return torch.autograd.grad(value.sum(), logits)[0]


@pytest.mark.parametrize("sizes", [(2, 3), (3, 1, 2)], ids=str)
def test_local_expectation_is_unbiased(sizes):
    """The average over every sample, weighted by its probability, is the exact gradient."""
    layout = make_layout(sizes)
    logits, table = random_logits(layout), Table(layout)
    oracle = enumerated_value(layout, logits, table).sum()
    expected = torch.autograd.grad(oracle, logits)[0]
    average = torch.zeros_like(expected)
    for joint in joint_one_hots(layout, CPU).argmax(-1):
        index = joint.expand(BATCH, -1)
        probability = distribution(layout, logits).log_prob(index).exp().detach()
        gradient = gradient_of_sample(layout, logits, table, index)
        average += probability[:, None, None] * gradient
    torch.testing.assert_close(average, expected)


def test_local_expectation_of_one_factor_has_no_variance():
    """Whatever was sampled, the gradient is the exact one."""
    layout = make_layout((4,))
    logits, table = random_logits(layout), Table(layout)
    oracle = enumerated_value(layout, logits, table).sum()
    expected = torch.autograd.grad(oracle, logits)[0]
    for category in range(4):
        index = torch.full((BATCH, 1), category)
        gradient = gradient_of_sample(layout, logits, table, index)
        torch.testing.assert_close(gradient, expected)


@SIZES
def test_local_expectation_has_the_value_of_the_sample(sizes):
    layout = make_layout(sizes)
    table, index = Table(layout), distribution(layout, random_logits(layout)).sample()
    value = local_expectation_value(
        distribution(layout, random_logits(layout)), index, layout, table
    )
    expected = table(layout.index_to_one_hot(index)[None])[0]
    torch.testing.assert_close(value, expected)


# --- on the device ----------------------------------------------------------------------------


def test_losses_never_read_the_device():
    """On the meta device a read of a value raises, as does a tensor made on the CPU."""
    layout = make_layout((2, 3))
    with torch.device("meta"):
        policy = FactoredCategorical(
            torch.zeros(5, 2, 3, requires_grad=True), layout.valid.to("meta"), validate=False
        )
        joint = joint_one_hots(layout, torch.device("meta"))
        exact = exact_value(policy, joint, sum_of_entries)
        local = local_expectation_value(policy, policy.sample(), layout, sum_of_entries)
        target = soft_bellman_target(exact, torch.zeros(5), 0.9, local)
        critic_loss(torch.zeros(2, 5), target).backward()
        trajectory = torch.zeros(3, 5)
        ended = torch.zeros(3, 5, dtype=torch.bool)
        lambda_returns(trajectory, ended, ended, trajectory, trajectory, 0.9, 0.9)
        categorical_critic_loss(torch.zeros(2, 5, 7), target, torch.zeros(7))
        kl_constrained_loss(target, policy.kl(policy), 0.1, torch.zeros(()))
    assert policy.logits.grad.device.type == "meta"


# --- what PPO adds ----------------------------------------------------------------------------


def test_advantages_by_hand_and_cut_at_ends():
    """Three steps, gamma lambda = 1/2; the episode of the second environment ends at step 1."""
    delta = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    carry = torch.tensor([[0.5, 0.5], [0.5, 0.0], [0.5, 0.5]])
    expected = torch.tensor(
        [[1 + 0.5 * (2 + 0.5 * 4), 1 + 0.5 * 2], [2 + 0.5 * 4, 2.0], [4.0, 4.0]]
    )
    torch.testing.assert_close(generalized_advantage(delta, carry), expected)


def test_the_clipped_surrogate_by_hand():
    ratio = torch.tensor([0.5, 0.5, 1.1, 2.0, 2.0], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 3.0, 1.0, -1.0])
    value = clipped_surrogate(ratio, advantage, torch.tensor(0.2))
    torch.testing.assert_close(value, torch.tensor([0.5, -0.8, 3.3, 1.2, -2.0]))
    value.sum().backward()
    # Clipped where that is the worse of the two: no gradient pushes the ratio further.
    torch.testing.assert_close(ratio.grad, torch.tensor([1.0, 0.0, 3.0, 0.0, -1.0]))


def test_explained_variance_is_that_of_sb3_and_nan_for_a_constant():
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 100, generator=generator)
    expected = peer_explained_variance(prediction.numpy(), target.numpy())
    assert explained_variance(prediction, target).item() == pytest.approx(expected, rel=1e-5)
    assert explained_variance(prediction, torch.ones(100)).isnan()


# --- windows --------------------------------------------------------------------------------------

# Columns: no end; ends at step 1; at steps 0 and 2; at the last step.
ENDED = torch.tensor([[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()


def test_discounts_start_again_after_an_end():
    expected = [[1, 1, 1, 1], [0.5, 0.5, 1, 0.5], [0.25, 1, 0.5, 0.25], [0.125, 0.5, 1, 0.125]]
    torch.testing.assert_close(restarting_discounts(ENDED, 0.5), torch.tensor(expected))
    ones = restarting_discounts(torch.zeros(3, 1, dtype=torch.bool), 0.0).squeeze(-1)
    assert ones.tolist() == [1, 0, 0]


@pytest.mark.parametrize("is_termination", [True, False])
def test_the_return_of_a_window_by_hand(is_termination):
    """Rewards 1, 2, 4, 8, values 100 t + 100 after step t, discount 1/2."""
    reward = torch.tensor([1.0, 2, 4, 8]).unsqueeze(-1).expand(4, 4)
    value = torch.tensor([100.0, 200, 300, 400]).unsqueeze(-1).expand(4, 4)
    nothing = torch.zeros_like(ENDED)
    terminated, truncated = (ENDED, nothing) if is_termination else (nothing, ENDED)
    found = window_return(
        reward, terminated, truncated, value, restarting_discounts(ENDED, 0.5), 0.5
    )
    whole = 1 + 1 + 1 + 1
    expected = torch.tensor([whole + 25.0, (1 + 1) + (4 + 4 + 100), 1 + (2 + 2) + (8 + 200), whole])
    if not is_termination:
        expected = expected + torch.tensor([0.0, 0.25 * 200, 0.5 * 100 + 0.25 * 300, 25.0])
    torch.testing.assert_close(found, expected)


# --- ensembles --------------------------------------------------------------------------------

MEMBERS = torch.tensor([[0.0, 5.0], [1.0, 4.0], [2.0, 3.0]])
"""`[E, B]`."""


@pytest.mark.parametrize(("aggregation", "expected"), [("min", [0, 3]), ("mean", [1, 4])])
def test_an_ensemble_is_its_minimum_or_mean(aggregation, expected):
    assert aggregate(MEMBERS, aggregation).tolist() == expected


def test_a_subset_is_drawn_at_each_call_and_the_same_for_every_row():
    """Of three pairs two hold the first member: its value is the minimum in 2 of 3 draws."""
    torch.manual_seed(0)
    draws = [tuple(aggregate(MEMBERS, "subset_2").tolist()) for _ in range(3000)]
    assert set(draws) == {(0, 4), (0, 3), (1, 3)}
    for pair in set(draws):
        assert abs(draws.count(pair) - 1000) < 5 * math.sqrt(3000 * 2 / 9)


def test_weights_multiply_the_errors_of_their_rows():
    """(1/2) (0.5 * 4 + 1 * 1) / 2 for the first critic, nothing for the second."""
    values = torch.tensor([[2.0, 1.0], [0.0, 0.0]])
    loss = critic_loss(values, torch.zeros(2), torch.tensor([0.5, 1.0]))
    assert loss.item() == pytest.approx(0.75)
    logits, target = torch.randn(2, 2, 5), torch.tensor([0.3, -1.0])
    centers = torch.linspace(-2, 2, 5)
    both = categorical_critic_loss(logits, target, centers, torch.tensor([2.0, 0.0]))
    first = categorical_critic_loss(logits[:, :1], target[:1], centers)
    torch.testing.assert_close(both, first)
