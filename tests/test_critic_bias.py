"""What the critic's shape makes of plain straight-through: exact expectations, by enumeration."""

import itertools

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rl_gumbel import ESTIMATORS, ActionLayout, FactoredCategorical
from rl_gumbel.losses import exact_value, joint_one_hots
from rl_gumbel.networks import CRITICS

LAYOUT = ActionLayout.from_space(spaces.MultiDiscrete([3, 2, 2]))
ROWS = 5


def make(critic: str, layout: ActionLayout):
    """Features, logits with a gradient, and three critics with weights that differ widely."""
    torch.manual_seed(0)
    network = CRITICS[critic](4, layout, [16], n_critics=3, layer_norm=False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.7)
    shape = (ROWS, layout.num_factors, layout.num_categories)
    return torch.randn(ROWS, 4), torch.randn(shape, requires_grad=True), network


def gradients(value, logits: Tensor, layout: ActionLayout) -> tuple[Tensor, Tensor]:
    """The expected straight-through gradient at temperature 1, and the exact one."""
    joint = joint_one_hots(layout, torch.device("cpu"))
    policy = FactoredCategorical(logits, layout.mask)

    def values(one_hot: Tensor) -> Tensor:
        return torch.stack([value(each) for each in one_hot])

    (exact,) = torch.autograd.grad(exact_value(policy, joint, values).sum(), logits)
    expected = torch.zeros_like(logits)
    for action in joint:
        # Noise that makes this action the sample; the gradient of plain straight-through knows the
        # sample only.
        noise = (1e3 * action).expand_as(logits)
        sample = ESTIMATORS["straight_through"](
            logits, temperature=1.0, mask=layout.mask, noise=noise
        )
        assert torch.equal(sample.one_hot.detach(), action.expand_as(logits))
        (gradient,) = torch.autograd.grad(value(sample.one_hot).sum(), logits, retain_graph=True)
        probability = policy.log_prob(sample.one_hot).exp().detach()
        expected += probability[:, None, None] * gradient
    return expected, exact


def relative_bias(value, logits: Tensor, layout: ActionLayout = LAYOUT) -> float:
    expected, exact = gradients(value, logits, layout)
    return float((expected - exact).norm() / exact.norm())


def test_straight_through_is_unbiased_through_the_mean_of_multilinear_critics():
    features, logits, network = make("multilinear", LAYOUT)
    bias = relative_bias(lambda one_hot: network.actor_value(features, one_hot), logits)
    assert bias < 1e-5
    mean = relative_bias(lambda one_hot: network(features, one_hot).mean(0), logits)
    assert mean < 1e-5


def test_straight_through_is_biased_through_the_minimum_of_multilinear_critics():
    features, logits, network = make("multilinear", LAYOUT)
    assert relative_bias(lambda one_hot: network(features, one_hot).amin(0), logits) > 0.05


@pytest.mark.parametrize("use_mean", [False, True])
def test_straight_through_is_biased_through_concat_critics(use_mean):
    features, logits, network = make("concat", LAYOUT)
    bias = relative_bias(lambda one_hot: network.actor_value(features, one_hot, use_mean), logits)
    assert bias > 0.05


@pytest.mark.parametrize("use_mean", [False, True])
def test_for_one_factor_the_minimum_of_the_q_vectors_is_unbiased_too(use_mean):
    layout = ActionLayout.from_space(spaces.Discrete(4))
    features, logits, network = make("multilinear", layout)
    assert (
        relative_bias(
            lambda one_hot: network.actor_value(features, one_hot, use_mean), logits, layout
        )
        < 1e-5
    )


def test_what_the_actor_climbs_for_one_factor_is_the_minimum_or_the_mean_at_each_action():
    layout = ActionLayout.from_space(spaces.Discrete(4))
    features, _, network = make("multilinear", layout)
    for index, use_mean in itertools.product(range(4), (False, True)):
        one_hot = layout.index_to_one_hot(torch.full((ROWS, 1), index))
        values = network(features, one_hot)
        expected = values.mean(0) if use_mean else values.amin(0)
        torch.testing.assert_close(network.actor_value(features, one_hot, use_mean), expected)
