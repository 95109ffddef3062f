"""Networks with the same weights for every unit: what they equal, what they cannot tell apart."""

import pytest
import torch
from gymnasium import spaces
from torch import nn

from rl_gumbel import make_vec
from rl_gumbel.actions import ActionLayout
from rl_gumbel.algorithms import ALGORITHMS, BatchedPPO, GumbelREPPO, GumbelSAC, GumbelSHAC
from rl_gumbel.equivariant import (
    EquivariantCritic,
    EquivariantLayer,
    EquivariantLogitNetwork,
    EquivariantTorso,
    EquivariantValueNetwork,
)
from rl_gumbel.policies.batched import BatchedActorCriticPolicy, SharedExtractor

BATCH, UNITS, PART, CHOICES = 5, 3, 2, 4
LAYOUT = ActionLayout.from_space(spaces.MultiDiscrete([CHOICES] * UNITS))
ORDER = [2, 0, 1]


def features_and_action():
    torch.manual_seed(0)
    index = torch.randint(CHOICES, (BATCH, UNITS))
    return torch.randn(BATCH, UNITS * PART), LAYOUT.index_to_one_hot(index)


def reorder(features):
    """Exchange the units of an observation."""
    return features.unflatten(-1, (UNITS, PART))[:, ORDER].flatten(1)


def test_a_layer_is_its_own_part_and_the_mean_of_all():
    layer = EquivariantLayer(2, UNITS, PART, 3)
    x = torch.randn(2, BATCH * UNITS, PART)
    y = layer(x).unflatten(1, (BATCH, UNITS))
    for member in range(2):
        own, everyone = layer.own, layer.everyone
        parts = x[member].unflatten(0, (BATCH, UNITS))
        expected = parts @ own.weight[member] + own.bias[member]
        expected = expected + parts.mean(1, keepdim=True) @ everyone.weight[member]
        torch.testing.assert_close(y[member], expected + everyone.bias[member])


def test_members_of_a_torso_are_independent():
    torch.manual_seed(0)
    torso = EquivariantTorso(2, UNITS, [PART, 6, 4], nn.SiLU, True)
    features, _ = features_and_action()
    before = torso(features)
    assert before.shape == (2, BATCH, UNITS, 4)
    with torch.no_grad():
        torso.layers[0].own.weight[0] += 1
    after = torso(features)
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_exchanged_units_have_exchanged_logits_and_the_same_value():
    torch.manual_seed(0)
    actor = EquivariantLogitNetwork(UNITS * PART, LAYOUT, [8, 8])
    value = EquivariantValueNetwork(UNITS * PART, LAYOUT, [8, 8])
    critic = EquivariantCritic(UNITS * PART, LAYOUT, [8, 8], n_critics=2)
    extractor = SharedExtractor(UNITS * PART, LAYOUT, [8], nn.Tanh)
    features, one_hot = features_and_action()
    other = reorder(features)
    assert actor(features).shape == (BATCH, UNITS, CHOICES)
    assert value(features).shape == (BATCH, 1)
    assert critic(features, one_hot).shape == (2, BATCH)
    torch.testing.assert_close(actor(other), actor(features)[:, ORDER])
    torch.testing.assert_close(value(other), value(features))
    torch.testing.assert_close(critic(other, one_hot[:, ORDER]), critic(features, one_hot))
    torch.testing.assert_close(extractor(other)[0], extractor(features)[0][:, ORDER])
    torch.testing.assert_close(extractor(other)[1], extractor(features)[1])
    # An action that moves from unit to unit without its state is another one.
    assert not torch.allclose(critic(features, one_hot[:, ORDER]), critic(features, one_hot))


def test_a_unit_sees_the_others_only_in_their_mean():
    torch.manual_seed(0)
    actor = EquivariantLogitNetwork(UNITS * PART, LAYOUT, [8])
    features, _ = features_and_action()
    shifted = features.unflatten(-1, (UNITS, PART)).clone()
    shifted[:, 1] += 1
    shifted[:, 2] -= 1  # the mean stays
    torch.testing.assert_close(actor(shifted.flatten(1))[:, 0], actor(features)[:, 0])
    shifted[:, 2] += 3
    assert not torch.allclose(actor(shifted.flatten(1))[:, 0], actor(features)[:, 0])


def test_the_actors_value_is_the_minimum():
    torch.manual_seed(0)
    critic = EquivariantCritic(UNITS * PART, LAYOUT, [8], n_critics=3)
    features, one_hot = features_and_action()
    values = critic(features, one_hot)
    assert torch.equal(critic.actor_value(features, one_hot), values.min(0).values)


@pytest.mark.parametrize("levels", [2, 5])
@pytest.mark.parametrize("algo", ["shac", "reppo", "sac", "ppo"])
def test_every_algorithm_learns_with_shared_weights_and_loads_them(algo, levels, tmp_path):
    env = make_vec("PendulumBank-v0", 4, device="cpu", n=3, levels=levels)
    kwargs = {"policy_kwargs": {"shared_factors": True, "net_arch": [8, 8]}}
    if algo == "sac":
        kwargs |= {"learning_starts": 8, "batch_size": 8}
    else:
        kwargs |= {"n_steps": 8}
    model = ALGORITHMS[algo]("MlpPolicy", env, seed=0, device="cpu", **kwargs)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(64)
    after = model.policy.state_dict()
    # A bias alone before layer norm, or of a value that is centred, may stand still.
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    assert len(moved) > len(after) / 2
    obs = env.reset(seed=1).numpy()
    action, _ = model.predict(obs, deterministic=True)
    turned, _ = model.predict(obs.reshape(4, 3, 3)[:, ORDER].reshape(4, 9), deterministic=True)
    assert (turned == action[:, ORDER]).all()
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", device="cpu")
    assert (loaded.predict(obs, deterministic=True)[0] == action).all()


def test_binary_factors_of_ppo_have_one_logit_each():
    torch.manual_seed(0)
    box, bits = spaces.Box(-1, 1, (UNITS * PART,)), spaces.MultiBinary(UNITS)
    policy = BatchedActorCriticPolicy(box, bits, lambda _: 1e-3, shared_factors=True)
    assert policy.action_net.weight.shape == (1, 64)
    features, _ = features_and_action()
    log_probs = policy.distribution(features).log_probs
    assert log_probs.shape == (BATCH, UNITS, 2)
    latent = policy.mlp_extractor.forward_actor(features)
    logit = policy.action_net(latent).squeeze(-1)
    torch.testing.assert_close(log_probs[..., 1], nn.functional.logsigmoid(logit))


@pytest.mark.parametrize(
    ("algorithm", "kwargs", "message"),
    [
        (GumbelREPPO, {"critic": "multilinear"}, "critic 'multilinear' would be ignored"),
        (GumbelREPPO, {"num_bins": 5}, "num_bins 5 is not for shared_factors"),
        (
            GumbelSAC,
            {"policy_kwargs": {"action_layer": "first"}},
            "action_layer 'first' would be ignored",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(algorithm, kwargs, message):
    env = make_vec("PendulumBank-v0", 2, device="cpu", n=2)
    policy_kwargs = {"shared_factors": True, **kwargs.pop("policy_kwargs", {})}
    with pytest.raises(ValueError, match=message):
        algorithm("MlpPolicy", env, policy_kwargs=policy_kwargs, device="cpu", **kwargs)


@pytest.mark.parametrize("algorithm", [BatchedPPO, GumbelSHAC])
@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("DiscretePendulum-v1", {}, r"shared_factors needs two or more factors of one size"),
        ("Thermostats-v0", {"n": 4}, r"an observation of 4 equal parts, .* it has \d+ numbers"),
    ],
)
def test_units_must_be_alike(algorithm, env_id, kwargs, message):
    env = make_vec(env_id, 2, device="cpu", **kwargs)
    with pytest.raises(ValueError, match=message):
        algorithm("MlpPolicy", env, policy_kwargs={"shared_factors": True}, device="cpu")
