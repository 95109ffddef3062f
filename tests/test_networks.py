"""Networks against torch.nn ones, and the critics' promises about the action."""

import itertools

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.losses import exact_value, joint_one_hots
from rl_gumbel.networks import (
    CRITICS,
    CategoricalHead,
    ConcatCritic,
    EnsembleLayerNorm,
    EnsembleLinear,
    LogitNetwork,
    MultilinearCritic,
    TanhLayers,
    hl_gauss,
)

MEMBERS, BATCH, FEATURES = 3, 5, 4
UNEQUAL = (3, 2, 2)
SIZES = pytest.mark.parametrize("sizes", [(4,), (3, 3), UNEQUAL, (1, 3)], ids=str)
EVERY_CRITIC = pytest.mark.parametrize("name", list(CRITICS))


@pytest.fixture(autouse=True)
def double_precision():
    """Comparisons to the last digits, and a seed."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def make_layout(sizes: tuple[int, ...]) -> ActionLayout:
    return ActionLayout.from_space(spaces.MultiDiscrete(list(sizes)))


def randomize(module: nn.Module) -> nn.Module:
    """Large weights: a critic that is nearly linear by luck must not pass."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def make_critic(name: str, layout: ActionLayout, net_arch: list[int] | None = None, **kwargs):
    net_arch = [8, 6] if net_arch is None else net_arch
    return randomize(CRITICS[name](FEATURES, layout, net_arch, nn.Tanh, **kwargs))


def make_one_hot(layout: ActionLayout) -> Tensor:
    index = torch.stack([torch.randint(size, (BATCH,)) for size in layout.sizes], -1)
    return layout.index_to_one_hot(index)


def make_policy(layout: ActionLayout) -> FactoredCategorical:
    logits = torch.randn(1, layout.num_factors, layout.num_categories, requires_grad=True)
    return FactoredCategorical(logits, layout.mask)


# --- ensembles are separate networks ----------------------------------------------------------


def copy_linear(layer: EnsembleLinear, member: int) -> nn.Linear:
    copy = nn.Linear(*layer.weight.shape[1:])
    with torch.no_grad():
        copy.weight.copy_(layer.weight[member].T)
        copy.bias.copy_(layer.bias[member, 0])
    return copy


def copy_norm(layer: EnsembleLayerNorm, member: int) -> nn.LayerNorm:
    copy = nn.LayerNorm(layer.weight.shape[-1])
    with torch.no_grad():
        copy.weight.copy_(layer.weight[member, 0])
        copy.bias.copy_(layer.bias[member, 0])
    return copy


COPIES = {EnsembleLinear: copy_linear, EnsembleLayerNorm: copy_norm}


def copy_member(layers: nn.Sequential, member: int) -> nn.Sequential:
    """One member as torch's own modules."""
    return nn.Sequential(
        *(COPIES.get(type(layer), lambda same, _: same)(layer, member) for layer in layers)
    )


def test_ensemble_linear_equals_separate_linear_layers():
    layer = randomize(EnsembleLinear(MEMBERS, FEATURES, 2))
    x = torch.randn(MEMBERS, BATCH, FEATURES)
    expected = torch.stack([copy_linear(layer, e)(x[e]) for e in range(MEMBERS)])
    torch.testing.assert_close(layer(x), expected)


def test_ensemble_linear_starts_as_torch_linear():
    """Uniform within 1 / sqrt(inputs), members different."""
    layer = EnsembleLinear(2, 100, 200)
    for parameter in layer.parameters():
        assert 0.09 < parameter.max() <= 0.1
        assert -0.1 <= parameter.min() < -0.09
        assert not torch.equal(parameter[0], parameter[1])


def test_ensemble_layer_norm_equals_separate_layer_norms():
    layer = randomize(EnsembleLayerNorm(MEMBERS, FEATURES))
    x = torch.randn(MEMBERS, BATCH, FEATURES)
    expected = torch.stack([copy_norm(layer, e)(x[e]) for e in range(MEMBERS)])
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize(("action_layer", "num_before"), [("last", 1), ("first", 0)])
def test_concat_critic_equals_separate_perceptrons(layer_norm, action_layer, num_before):
    """Features through the trunk, then beside the action through the tail."""
    layout = make_layout(UNEQUAL)
    critic = make_critic(
        "concat", layout, n_critics=MEMBERS, layer_norm=layer_norm, action_layer=action_layer
    )
    kinds = [type(module) for module in (*critic.trunk, *critic.tail)]
    assert kinds.count(EnsembleLinear) == 2
    assert kinds.count(EnsembleLayerNorm) == layer_norm * (1 if action_layer == "last" else 2)
    assert [type(module) for module in critic.trunk].count(EnsembleLinear) == num_before
    features, one_hot = torch.randn(BATCH, FEATURES), make_one_hot(layout)
    flat = torch.cat([one_hot[:, k, :size] for k, size in enumerate(UNEQUAL)], -1)
    values = critic(features, one_hot)
    assert values.shape == (MEMBERS, BATCH)
    for member in range(MEMBERS):
        hidden = copy_member(critic.trunk, member)(features)
        hidden = copy_member(critic.tail, member)(torch.cat([hidden, flat], -1))
        expected = copy_linear(critic.output, member)(hidden).squeeze(-1)
        torch.testing.assert_close(values[member], expected)


def test_the_action_enters_at_a_known_layer():
    with pytest.raises(
        ValueError, match=r"^action_layer 'middle' must be one of \('last', 'first'\)"
    ):
        make_critic("concat", make_layout(UNEQUAL), action_layer="middle")


def test_layer_norm_is_a_choice():
    layout = make_layout(UNEQUAL)
    for critic_class in CRITICS.values():
        for layer_norm in (True, False):
            critic = critic_class(FEATURES, layout, [8, 8], layer_norm=layer_norm)
            kinds = {type(module) for module in critic.modules()}
            assert (EnsembleLayerNorm in kinds) == layer_norm


def test_multilinear_critic_is_the_formula_of_its_docstring():
    """Q = sum_k <q_k, a_k> + sum_r w_r prod_k <1 + u_rk / K, a_k>, written with loops."""
    layout = make_layout(UNEQUAL)
    rank, flat = 2, sum(UNEQUAL)
    critic = make_critic("multilinear", layout, rank=rank)
    features, one_hot = torch.randn(BATCH, FEATURES), make_one_hot(layout)
    hidden = copy_member(critic.trunk, 1)(features)
    coefficients = copy_linear(critic.output, 1)(hidden)
    for row in range(BATCH):
        q, *u = coefficients[row, : flat * (1 + rank)].split(flat)
        w = coefficients[row, -rank:]
        chosen = [int(one_hot[row, k].argmax()) + sum(UNEQUAL[:k]) for k in range(3)]
        expected = sum(q[i] for i in chosen)
        for r in range(rank):
            product = torch.tensor(1.0)
            for i in chosen:
                product = product * (1 + u[r][i] / 3)
            expected = expected + w[r] * product
        torch.testing.assert_close(critic(features, one_hot)[1, row], expected)


# --- actions ----------------------------------------------------------------------------------


@SIZES
def test_concat_critic_ignores_padding(sizes):
    """Where a factor has no such category nothing is read, and no gradient arrives."""
    layout = make_layout(sizes)
    critic, features = make_critic("concat", layout), torch.randn(BATCH, FEATURES)
    one_hot = make_one_hot(layout)
    filled = one_hot.masked_fill(~layout.valid, 7.0).requires_grad_()
    values = critic(features, filled)
    torch.testing.assert_close(values, critic(features, one_hot))
    values.sum().backward()
    assert (filled.grad[:, ~layout.valid] == 0).all()
    assert (filled.grad[:, layout.valid] != 0).any()


@EVERY_CRITIC
@pytest.mark.parametrize("net_arch", [[], [8], [8, 8, 8]], ids=str)
def test_critics_take_any_depth(name, net_arch):
    layout = make_layout(UNEQUAL)
    critic = make_critic(name, layout, net_arch)
    values = critic(torch.randn(BATCH, FEATURES), make_one_hot(layout))
    assert values.shape == (2, BATCH)
    assert values.std() > 0


@SIZES
def test_logit_network_is_a_perceptron_with_padded_output(sizes):
    layout = make_layout(sizes)
    network = LogitNetwork(FEATURES, layout, [8], nn.Tanh)
    features = torch.randn(BATCH, FEATURES)
    logits = network(features)
    assert logits.shape == (BATCH, layout.num_factors, layout.num_categories)
    flat = network.layers(features)
    expected = torch.cat([logits[:, k, :size] for k, size in enumerate(sizes)], -1)
    torch.testing.assert_close(expected, flat)
    assert (logits[:, ~layout.valid] == 0).all()
    is_padded = len(set(sizes)) > 1
    assert (network.mask is not None) == is_padded


# --- the multilinear critic -------------------------------------------------------------------


@SIZES
def test_multilinear_critic_is_linear_in_each_factor(sizes):
    """Second differences along a line in one factor vanish, wherever the others stand."""
    layout = make_layout(sizes)
    critic, features = make_critic("multilinear", layout), torch.randn(BATCH, FEATURES)
    start = torch.randn(BATCH, *layout.valid.shape)
    for factor in range(layout.num_factors):
        step = torch.zeros_like(start)
        step[:, factor] = torch.randn(BATCH, layout.num_categories)
        left, middle, right = (critic(features, start + i * step) for i in range(3))
        torch.testing.assert_close(right - middle, middle - left)


def test_concat_critic_is_not_linear():
    """The control: the same differences of the other critic do not vanish."""
    layout = make_layout((4,))
    critic, features = make_critic("concat", layout), torch.randn(BATCH, FEATURES)
    start, step = torch.randn(2, BATCH, 1, 4)
    left, middle, right = (critic(features, start + i * step) for i in range(3))
    assert ((right - middle) - (middle - left)).abs().max() > 0.1


@SIZES
def test_multilinear_critic_of_probabilities_is_the_expectation(sizes):
    layout = make_layout(sizes)
    critic, features = make_critic("multilinear", layout), torch.randn(1, FEATURES)
    probs = make_policy(layout).probs
    expected = torch.zeros(critic.n_critics, 1)
    for joint in itertools.product(*(range(size) for size in sizes)):
        probability = torch.stack([probs[0, k, i] for k, i in enumerate(joint)]).prod()
        one_hot = layout.index_to_one_hot(torch.tensor([joint]))
        expected += probability * critic(features, one_hot)
    torch.testing.assert_close(critic(features, probs), expected)


def test_multilinear_critic_of_one_factor_is_a_vector_of_action_values():
    layout = make_layout((4,))
    critic, features = make_critic("multilinear", layout, rank=8), torch.randn(BATCH, FEATURES)
    hidden = copy_member(critic.trunk, 0)(features)
    action_values = copy_linear(critic.output, 0)(hidden)
    assert action_values.shape == (BATCH, 4)
    one_hots = torch.eye(4).reshape(4, 1, 1, 4).expand(-1, BATCH, -1, -1)
    values = torch.stack([critic(features, one_hot)[0] for one_hot in one_hots], -1)
    torch.testing.assert_close(values, action_values)


def test_multilinear_critic_can_tell_interactions():
    """Rank 0 could not: Q(0, 0) - Q(1, 0) would not depend on the second factor."""
    layout = make_layout((2, 2))
    critic = make_critic("multilinear", layout)
    joint = joint_one_hots(layout, torch.device("cpu"))
    q = critic(torch.randn(1, FEATURES).expand(4, -1), joint)[0]
    assert (q[0] - q[2] - (q[1] - q[3])).abs() > 0.1


def test_values_of_many_factors_stay_bounded_at_the_start():
    """A product over 64 factors must neither vanish nor explode."""
    layout = make_layout((2,) * 64)
    critic = MultilinearCritic(FEATURES, layout, [32, 32])
    values = critic(torch.randn(BATCH, FEATURES), make_one_hot(layout))
    assert values.isfinite().all()
    assert 0.01 < values.std() < 100


# --- values as distributions over bins --------------------------------------------------------


def test_hl_gauss_by_hand():
    """Bins of width 1 about -1, 0, 1 and a deviation of 0.75: Phi(2) and Phi(2 / 3) from a table.

    The middle bin holds 2 * 0.74751 - 1 of 2 * 0.97725 - 1, the other two share the rest.
    """
    probs = hl_gauss(torch.tensor(0.0), torch.tensor([-1.0, 0.0, 1.0]))
    middle = (2 * 0.74751 - 1) / (2 * 0.97725 - 1)
    expected = torch.tensor([(1 - middle) / 2, middle, (1 - middle) / 2])
    torch.testing.assert_close(probs, expected, rtol=0, atol=1e-5)


def test_hl_gauss_has_the_mean_of_its_value_where_no_edge_is_near():
    centers = torch.linspace(-10.0, 10.0, 41)
    value = torch.linspace(-8.0, 8.0, 33) + 0.123
    probs = hl_gauss(value, centers)
    torch.testing.assert_close(probs.sum(-1), torch.ones(33))
    # The histogram of a normal is not exactly symmetric about a value between two centers.
    torch.testing.assert_close((probs * centers).sum(-1), value, rtol=0, atol=0.002)


def test_hl_gauss_clips_to_the_outermost_centers():
    centers = torch.linspace(0.0, 4.0, 5)
    clipped = hl_gauss(torch.tensor([-100.0, 100.0]), centers)
    torch.testing.assert_close(clipped, hl_gauss(torch.tensor([0.0, 4.0]), centers))


def test_a_head_returns_the_mean_over_bins():
    head = CategoricalHead(3, (-2.0, 4.0))
    logits = torch.tensor([[0.2, 0.3, 0.5], [1.0, 1.0, 1.0]]).log()
    torch.testing.assert_close(head(logits), torch.tensor([0.2 * -2 + 0.3 * 1 + 0.5 * 4, 1.0]))


@pytest.mark.parametrize(
    ("num_bins", "value_range", "message"),
    [
        (1, (0.0, 1.0), "num_bins 1 must be an integer >= 2"),
        (3, (1.0, 1.0), r"value_range \(1.0, 1.0\) must be two numbers, finite and increasing"),
        (3, (0.0, float("inf")), r"value_range \(0.0, inf\) must be two numbers, finite and inc"),
        (2.5, (0.0, 1.0), r"num_bins 2\.5 must be an integer >= 2"),
        (3, [1.0], r"value_range \[1\.0\] must be two numbers"),
        (3, [0, 1, 2], r"value_range \[0, 1, 2\] must be two numbers"),
        (3, 3, "value_range 3 must be two numbers"),
        (3, ["a", 1], r"value_range \['a', 1\] must be two numbers"),
    ],
)
def test_a_head_without_bins_is_refused(num_bins, value_range, message):
    with pytest.raises(ValueError, match=message):
        CategoricalHead(num_bins, value_range)


@EVERY_CRITIC
def test_a_critic_with_a_head_has_the_mean_of_its_logits_as_value(name):
    layout, head = make_layout((3,)), CategoricalHead(7, (-1.0, 2.0))
    critic = make_critic(name, layout, n_critics=MEMBERS, head=head)
    features, one_hot = torch.randn(BATCH, FEATURES), make_one_hot(layout)
    logits = critic.logits(features, one_hot)
    assert logits.shape == (MEMBERS, BATCH, 7)
    torch.testing.assert_close(critic(features, one_hot), head(logits))


@EVERY_CRITIC
def test_a_critic_with_a_head_starts_near_zero(name):
    """The middle of the range is 9, half its length 11: far more than first values and slopes."""
    layout = make_layout((3,))
    critic = CRITICS[name](FEATURES, layout, [32, 32], head=CategoricalHead(51, (-2.0, 20.0)))
    one_hot = make_one_hot(layout).requires_grad_()
    values = critic(torch.randn(BATCH, FEATURES), one_hot)
    assert values.abs().max() < 0.2
    assert torch.autograd.grad(values.sum(), one_hot)[0].std() < 0.5


def test_a_multilinear_critic_with_a_head_is_linear_in_the_probabilities():
    """Each action has a mean of its own; the expectation mixes means, not logits."""
    layout = make_layout((4,))
    head = CategoricalHead(5, (-1.0, 1.0))
    critic, features = make_critic("multilinear", layout, head=head), torch.randn(1, FEATURES)
    one_hots = torch.eye(4).unsqueeze(1)
    vector = critic(features.expand(4, -1), one_hots)
    probs = make_policy(layout).probs
    expected = (probs[0, 0] * vector).sum(-1, keepdim=True)
    torch.testing.assert_close(critic(features, probs), expected)


def test_a_head_on_several_factors_of_a_multilinear_critic_is_refused():
    with pytest.raises(ValueError, match="cannot have bins for the 2 factors of MultiDiscrete"):
        MultilinearCritic(FEATURES, make_layout((2, 3)), [8], head=CategoricalHead(5, (0, 1)))


# --- what the actor climbs --------------------------------------------------------------------


def test_concat_actor_value_is_the_minimum():
    layout = make_layout(UNEQUAL)
    critic = make_critic("concat", layout, n_critics=MEMBERS)
    features, one_hot = torch.randn(BATCH, FEATURES), make_one_hot(layout)
    expected = critic(features, one_hot).min(0).values
    torch.testing.assert_close(critic.actor_value(features, one_hot), expected)


def test_multilinear_actor_value_of_one_factor_is_the_minimum_over_each_action():
    """Of one-hots both ways of taking it agree; of probabilities only this one is linear."""
    layout = make_layout((4,))
    critic, features = make_critic("multilinear", layout), torch.randn(1, FEATURES)
    one_hots = torch.eye(4).unsqueeze(1)
    smallest = critic(features.expand(4, -1), one_hots).min(0).values
    torch.testing.assert_close(critic.actor_value(features.expand(4, -1), one_hots), smallest)
    probs = make_policy(layout).probs
    expected = (probs[0, 0] * smallest).sum()[None]
    torch.testing.assert_close(critic.actor_value(features, probs), expected)
    assert (critic(features, probs).amin(0) - expected).abs() > 1e-3


def test_multilinear_actor_value_of_several_factors_is_the_mean():
    layout = make_layout(UNEQUAL)
    critic = make_critic("multilinear", layout, n_critics=MEMBERS)
    features, one_hot = torch.randn(BATCH, FEATURES), make_one_hot(layout)
    expected = critic(features, one_hot).mean(0)
    torch.testing.assert_close(critic.actor_value(features, one_hot), expected)


def mean_gradient(policy: FactoredCategorical, layout: ActionLayout, value, estimator: str):
    """The estimator's gradient, averaged over every sample with its probability: no noise left."""
    average = torch.zeros_like(policy.logits)
    for joint in joint_one_hots(layout, torch.device("cpu")):
        # Noise that makes exactly this sample. Straight-through and ReinMax use no more of it.
        noise = (1000 * joint).unsqueeze(0)
        sample = policy.rsample(estimator, temperature=1.0, noise=noise)
        assert torch.equal(sample.one_hot[0], joint)
        gradient = torch.autograd.grad(value(sample.one_hot).sum(), policy.logits)[0]
        average += policy.log_prob(joint).exp().detach() * gradient
    return average


def exact_gradient(policy: FactoredCategorical, layout: ActionLayout, value) -> Tensor:
    joint = joint_one_hots(layout, torch.device("cpu"))
    exact = exact_value(policy, joint, lambda one_hot: value(one_hot[:, 0]).unsqueeze(-1))
    return torch.autograd.grad(exact.sum(), policy.logits)[0]


@SIZES
@pytest.mark.parametrize("estimator", ["straight_through", "reinmax"])
def test_straight_through_is_unbiased_through_the_multilinear_critic(sizes, estimator):
    """At temperature 1, against enumeration."""
    layout = make_layout(sizes)
    critic, features = make_critic("multilinear", layout), torch.randn(1, FEATURES)

    def value(one_hot: Tensor) -> Tensor:
        return critic.actor_value(features.expand(one_hot.shape[0], -1), one_hot)

    policy = make_policy(layout)
    gradient = mean_gradient(policy, layout, value, estimator)
    torch.testing.assert_close(gradient, exact_gradient(policy, layout, value))


def test_a_minimum_over_the_ensemble_would_bias_straight_through():
    """Why the actor climbs the mean where there are several factors."""
    layout = make_layout((3, 3))
    critic, features = make_critic("multilinear", layout), torch.randn(1, FEATURES)

    def value(one_hot: Tensor) -> Tensor:
        return critic(features.expand(one_hot.shape[0], -1), one_hot).amin(0)

    policy = make_policy(layout)
    exact = exact_gradient(policy, layout, value)
    bias = mean_gradient(policy, layout, value, "straight_through") - exact
    assert bias.norm() > 0.05 * exact.norm()


def test_straight_through_is_biased_through_the_concat_critic():
    """The control for the test above: the critic's shape is what decides."""
    layout = make_layout((3, 3))
    critic, features = make_critic("concat", layout, n_critics=1), torch.randn(1, FEATURES)

    def value(one_hot: Tensor) -> Tensor:
        return critic.actor_value(features.expand(one_hot.shape[0], -1), one_hot)

    policy = make_policy(layout)
    exact = exact_gradient(policy, layout, value)
    bias = mean_gradient(policy, layout, value, "straight_through") - exact
    assert bias.norm() > 0.05 * exact.norm()


# --- on the device ----------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3, 3), UNEQUAL], ids=str)
def test_networks_never_read_the_device(sizes):
    """On the meta device a read of a value raises, as does a tensor made on the CPU."""
    layout = make_layout(sizes)
    features = torch.zeros(BATCH, FEATURES, device="meta")
    logits = LogitNetwork(FEATURES, layout, [8]).to("meta")(features)
    assert logits.device.type == "meta"
    for critic_class in (ConcatCritic, MultilinearCritic):
        critic = critic_class(FEATURES, layout, [8]).to("meta")
        critic.actor_value(features, logits.detach()).sum().backward()
        assert critic.output.weight.grad.device.type == "meta"
    critic = ConcatCritic(FEATURES, layout, [8], head=CategoricalHead(5, (0, 1))).to("meta")
    values = critic.actor_value(features, logits.detach())
    assert hl_gauss(values, critic.head.centers).shape == (BATCH, 5)


# --- the faster tanh --------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 8])
def test_linear_layers_with_tanh_in_one_function_are_the_same_with_their_derivatives(width):
    layers = [nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh()]
    plain, fast = nn.Sequential(*layers).double(), TanhLayers(*layers)
    x = torch.randn(6, width, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(fast(x), plain(x))
    inputs = (x, *fast.parameters())
    slopes, expected = (torch.autograd.grad(net(x).square().sum(), inputs) for net in (fast, plain))
    torch.testing.assert_close(slopes, expected)
    assert torch.autograd.gradgradcheck(fast, (x,))


def test_tanh_of_single_precision_is_exact_to_the_seventh_digit():
    layers = TanhLayers(nn.Linear(1, 1), nn.Tanh())
    nn.init.ones_(layers[0].weight)
    nn.init.zeros_(layers[0].bias)
    x = torch.linspace(-20, 20, 4001).unsqueeze(-1)
    torch.testing.assert_close(layers(x), x.tanh(), atol=2e-7, rtol=0)


@pytest.mark.parametrize("width", [1, 2])
def test_members_of_an_ensemble_are_linear_layers_of_their_own(width):
    layer, x = EnsembleLinear(3, 4, width), torch.randn(3, 5, 4)
    for member, y in enumerate(layer(x)):
        weight, bias = layer.weight[member].t(), layer.bias[member, 0]
        torch.testing.assert_close(y, nn.functional.linear(x[member], weight, bias))
