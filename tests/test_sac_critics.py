"""GumbelSAC's critics: ensembles, dropout, bins, restarts, prioritised replay, relaxed actions."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny_envs import Tiny
from torch import Tensor

from rl_gumbel import ESTIMATORS, GumbelSAC
from rl_gumbel.algorithms.objective import PROBE_DRAWS
from rl_gumbel.buffers import DeviceReplayBuffer
from rl_gumbel.losses import categorical_critic_loss, joint_one_hots

FACTORED = spaces.MultiDiscrete([3, 2], start=[-1, 4])


def build(space: spaces.Space[Any] = FACTORED, num_envs: int = 1, **kwargs: Any) -> GumbelSAC:
    """A small model whose logger keeps everything."""
    settings: dict[str, Any] = {"learning_starts": 20, "buffer_size": 400, "batch_size": 16}
    settings |= {"cosine_interval": 0, "seed": 0, "device": "cpu"}
    policy_kwargs = {"net_arch": [16], **kwargs.pop("policy_kwargs", {})}
    env = DummyVecEnv([lambda: Tiny(space)] * num_envs)
    model = GumbelSAC("MlpPolicy", env, policy_kwargs=policy_kwargs, **(settings | kwargs))
    model.set_logger(configure(None, []))
    return model


def filled(space: spaces.Space[Any] = FACTORED, **kwargs: Any) -> GumbelSAC:
    return build(space, **kwargs).learn(20, log_interval=None)


def vector(module: torch.nn.Module) -> Tensor:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def randomize(*modules: torch.nn.Module) -> None:
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.normal_(std=0.5)


# --- ensembles --------------------------------------------------------------------------------


def ensemble(aggregation: str) -> GumbelSAC:
    model = filled(
        aggregation=aggregation,
        critic="multilinear",
        ent_coef=0.0,
        gamma=0.9,
        policy_kwargs={"n_critics": 3},
    )
    torch.manual_seed(1)  # by which each member is the lowest somewhere
    randomize(model.critic, model.critic_target)
    return model


@torch.no_grad()
def loss_by_hand(model: GumbelSAC, batch: Any, next_value: Tensor) -> float:
    target = batch.rewards[:, 0] + 0.9 * (1 - batch.dones[:, 0]) * next_value
    values = model.critic(batch.observations, model.layout.to_one_hot(batch.actions))
    return float(0.5 * (values - target).square().mean(-1).sum())


def members(model: GumbelSAC, batch: Any) -> Tensor:
    """`[E, B]` values of what follows, in expectation."""
    obs = batch.next_observations
    return model.critic_target(obs, model.actor(obs).probs)


@pytest.mark.parametrize("aggregation", ["min", "mean"])
def test_the_target_is_the_minimum_or_the_mean_of_the_ensemble(aggregation):
    model = ensemble(aggregation)
    batch = model.replay_buffer.sample(16)
    values = members(model, batch)
    expected = loss_by_hand(
        model, batch, values.amin(0) if aggregation == "min" else values.mean(0)
    )
    assert model.update_critic(batch)["train/critic_loss"].item() == pytest.approx(expected)


@torch.no_grad()
def test_the_target_counts_the_entropy_to_come_only_if_it_is_soft():
    model = filled(critic="multilinear", aggregation="mean", ent_coef=0.3, gamma=0.9)
    randomize(model.actor, model.critic_target)
    batch = model.replay_buffer.sample(16)
    soft = model.target_value(batch)
    model.soft_target = False
    entropy = model.actor(batch.next_observations).entropy()
    hard = batch.rewards[:, 0] + 0.9 * (1 - batch.dones[:, 0]) * members(model, batch).mean(0)
    torch.testing.assert_close(model.target_value(batch), hard)
    torch.testing.assert_close(soft - hard, 0.9 * (1 - batch.dones[:, 0]) * 0.3 * entropy)


def test_a_hard_target_without_entropy_is_refused():
    with pytest.raises(ValueError, match="soft_target False would be ignored: ent_coef is 0"):
        build(soft_target=False, ent_coef=0.0)


def test_a_random_pair_makes_the_target():
    """Each of the three pairs, and nothing else."""
    model = ensemble("subset_2")
    batch = model.replay_buffer.sample(16)
    values = members(model, batch)
    pairs = [loss_by_hand(model, batch, values[list(p)].amin(0)) for p in combinations(range(3), 2)]
    seen = [model.critic_loss(batch)[0].item() for _ in range(40)]
    assert np.unique(np.round(pairs, 3)).size == 3
    assert np.unique(np.round(seen, 3)).tolist() == np.unique(np.round(pairs, 3)).tolist()


@pytest.mark.parametrize("aggregation", ["min", "mean", "subset_2"])
@pytest.mark.parametrize("actor_gradient", ["estimator", "exact"])
def test_the_actor_climbs_the_minimum_only_where_the_target_has_it(aggregation, actor_gradient):
    settings = {"policy_kwargs": {"n_critics": 3}, "actor_gradient": actor_gradient}
    model = filled(aggregation=aggregation, ent_coef=0.0, **settings)
    randomize(model.critic)
    obs = model.replay_buffer.sample(16).observations
    torch.manual_seed(5)
    policy = model.actor(obs)
    if actor_gradient == "exact":
        joint = joint_one_hots(model.layout, torch.device("cpu"))
        each = torch.stack([model.critic(obs, one_hot.expand(16, -1, -1)) for one_hot in joint])
        value = each.amin(1) if aggregation == "min" else each.mean(1)
        weights = torch.stack([policy.log_prob(one_hot.expand(16, -1, -1)) for one_hot in joint])
        expected = (weights.exp() * value).sum(0).mean()
    else:
        values = model.critic(obs, policy.rsample().one_hot)
        expected = (values.amin(0) if aggregation == "min" else values.mean(0)).mean()
    torch.manual_seed(5)
    loss = model.update_actor(obs, 1.0)["train/actor_loss"]
    assert -loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("aggregation", ["subset_3", "subset_0", "subset_", "median"])
def test_what_two_critics_cannot_be_aggregated_to_is_refused(aggregation):
    with pytest.raises(ValueError, match=f"aggregation '{aggregation}' must be 'min', 'mean' or"):
        build(aggregation=aggregation)


# --- dropout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["concat", "multilinear"])
def test_dropout_is_part_of_critic_and_target_in_training_and_not_of_the_actor(critic):
    policy_kwargs = {"net_arch": [64, 64], "dropout": 0.25}
    model = filled(critic=critic, policy_kwargs=policy_kwargs)
    network = model.critic.network
    layers = [type(layer).__name__ for layer in [*network.trunk, *getattr(network, "tail", [])]]
    assert layers.count("Dropout") == 2
    assert layers[:4] == ["EnsembleLinear", "Dropout", "EnsembleLayerNorm", "SiLU"]
    assert not any(isinstance(module, torch.nn.Dropout) for module in model.actor.modules())
    obs = model.replay_buffer.sample(16).observations
    one_hot = model.actor(obs).rsample().one_hot
    for mode, is_random in ((True, True), (False, False)):
        model.policy.set_training_mode(mode)
        first, second = model.critic(obs, one_hot), model.critic(obs, one_hot)
        assert torch.equal(first, second) is not is_random
        target = model.critic_target(obs, one_hot), model.critic_target(obs, one_hot)
        assert not torch.equal(*target)


def test_without_dropout_the_target_is_the_same_in_every_mode():
    model = filled()
    model.policy.set_training_mode(True)
    assert not model.critic_target.training


def test_the_probe_of_the_gradient_rests_from_dropout():
    """Straight-through and a Q-vector are exact, which two draws of a dropout would hide."""
    settings = {"critic": "multilinear", "estimator": "straight_through"}
    model = filled(spaces.Discrete(3), policy_kwargs={"dropout": 0.5}, **settings)
    model.policy.set_training_mode(True)
    metrics = model.probe_estimator(model.replay_buffer.sample(16).observations, 1.0)
    assert metrics["estimator/cosine"].item() == pytest.approx(1, abs=1e-5)
    assert model.critic.training


# --- bins -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "critic"), [(FACTORED, "concat"), (spaces.Discrete(3), "multilinear")], ids=str
)
def test_critics_with_bins_regress_to_histograms_about_the_target(space, critic):
    model = filled(space, critic=critic, num_bins=21, value_range=[-3, 3], ent_coef=0.0, gamma=0.9)
    randomize(model.critic_target)
    batch = model.replay_buffer.sample(16)
    torch.manual_seed(4)
    target = model.target_value(batch)
    assert (target.abs() < 3).all()  # a value is a mean over the bins
    one_hot = model.layout.to_one_hot(batch.actions)
    network = model.critic.network
    logits = network.logits(model.critic.features(batch.observations), one_hot)
    centers = torch.linspace(-3, 3, 21)
    expected = categorical_critic_loss(logits, target, centers)
    torch.manual_seed(4)
    metrics = model.update_critic(batch)
    torch.testing.assert_close(metrics["train/critic_loss"], expected.detach())
    assert metrics["train/target_outside"] == 0


def test_targets_beyond_the_bins_are_counted():
    model = filled(num_bins=5, value_range=[-0.1, 0.1], reward_scale=100.0, gamma=0.0)
    batch = model.replay_buffer.sample(64)
    outside = (batch.rewards != 0).float().mean()
    assert 0 < outside < 1
    assert model.update_critic(batch)["train/target_outside"] == outside


def test_a_critic_with_bins_learns_the_better_action():
    """`Tiny` pays 1 for category 1 or 2 of the first factor's three, -1 of the second never."""
    model = build(
        spaces.Discrete(2), num_bins=51, value_range=[-2, 2], gamma=0.0, critic="multilinear",
        learning_rate=3e-3, ent_coef=0.05, estimator="straight_through", batch_size=64,
    ).learn(400)  # fmt: skip
    obs = model.replay_buffer.sample(64).observations
    values = [
        model.critic(obs, model.layout.index_to_one_hot(torch.full((64, 1), i))).mean().item()
        for i in range(2)
    ]
    assert values == pytest.approx([0.0, 1.0], abs=0.15)
    assert model.actor(obs).probs[:, 0, 1].mean() > 0.9


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_bins": 11, "critic": "multilinear"}, "critic 'multilinear' cannot have bins"),
        ({"value_range": [0, 1]}, r"value_range \[0, 1\] would be ignored"),
        ({"num_bins": 1}, "num_bins 1 must be an integer >= 2"),
        ({"policy_kwargs": {"dropout": 1.0}}, r"dropout 1\.0 must be in \[0, 1\)"),
        ({"reset_interval": -1}, "reset_interval -1 must be >= 0"),
        ({"priority_exponent": 2.0}, r"priority_exponent 2\.0 must be in \[0, 1\]"),
        ({"importance_exponent": 0.5}, r"importance_exponent 0\.5 would be ignored: priority_exp"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


# --- restarts ---------------------------------------------------------------------------------


def test_networks_and_optimisers_restart_at_their_interval_and_the_replay_stays():
    model = filled(reset_interval=4, ent_coef="auto_0.3", learning_rate=1e-2, tau=0.5)
    rows = model.replay_buffer.size()
    kept = [*model.actor.parameters(), *model.critic.parameters()]
    model.train(3, 16)
    before = vector(model.actor), vector(model.critic)
    assert not torch.equal(vector(model.critic), vector(model.critic_target))
    model.train(1, 16)
    assert torch.equal(vector(model.critic), vector(model.critic_target))
    for old, module in zip(before, (model.actor, model.critic), strict=True):
        assert (vector(module) - old).abs().mean() > 0.05  # far beyond one step of 0.01
    assert model.log_ent_coef.item() == pytest.approx(math.log(0.3))
    for optimizer in (model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer):
        assert optimizer.state
        for state in optimizer.state.values():
            assert all((moment == 0).all() for moment in state.values())
    now = [*model.actor.parameters(), *model.critic.parameters()]
    assert all(a is b for a, b in zip(kept, now, strict=True))  # what is compiled stays valid
    assert model.replay_buffer.size() == rows
    model.train(2, 16)
    assert model._n_updates == 6
    assert not torch.equal(vector(model.critic), vector(model.critic_target))


def test_twenty_updates_for_each_step_train_with_restarts_and_dropout(monkeypatch):
    model = build(
        gradient_steps=20,
        reset_interval=150,
        critic="multilinear",
        aggregation="subset_2",
        policy_kwargs={"n_critics": 4, "dropout": 0.01},
    )
    restarts, reset_networks = [], model.reset_networks

    def restart():
        reset_networks()
        restarts.append((model._n_updates, torch.equal(*map(vector, averaged))))

    averaged = (model.critic, model.critic_target)
    monkeypatch.setattr(model, "reset_networks", restart)
    model.learn(40, log_interval=None)
    assert model._n_updates == 400
    assert restarts == [(150, True), (300, True)]
    assert math.isfinite(model.logger.name_to_value["train/critic_loss"])
    batch = model.replay_buffer.sample(16)
    one_hot = model.layout.to_one_hot(batch.actions)
    assert model.critic.training
    assert not torch.equal(*(model.critic(batch.observations, one_hot) for _ in range(2)))
    model.critic_target.set_training_mode(False)  # without dropout the subset is what differs
    targets = torch.stack([model.target_value(batch) for _ in range(10)])
    assert (targets.std(0) > 0).any()


# --- prioritised replay -----------------------------------------------------------------------


def test_priorities_are_the_errors_of_the_last_update():
    model = filled(priority_exponent=0.5, ent_coef=0.0, gamma=0.0, policy_kwargs={"n_critics": 3})
    assert isinstance(model.replay_buffer, DeviceReplayBuffer)
    assert (model.replay_buffer.store["priority"][:20] == 1).all()
    batch = model.replay_buffer.sample(5)
    values = model.critic(batch.observations, model.layout.to_one_hot(batch.actions))
    errors = (values - batch.rewards.squeeze(-1)).abs().mean(0).detach()
    loss = (
        0.5 * (batch.weights.squeeze(-1) * (values - batch.rewards[:, 0]).square()).mean(-1).sum()
    )
    metrics = model.update_critic(batch)
    torch.testing.assert_close(metrics["train/critic_loss"], loss.detach())
    stored = model.replay_buffer.store["priority"].flatten()
    torch.testing.assert_close(stored[batch.positions], (errors + 1e-6).sqrt())
    untouched = torch.ones(20, dtype=torch.bool)
    untouched[batch.positions] = False
    assert (stored[:20][untouched] == 1).all()


def test_the_correction_of_priorities_rises_to_one_with_training():
    """By hand, at a quarter of the way: 0.4 + 0.6 / 4."""
    model = filled(priority_exponent=0.6)
    model._current_progress_remaining = 0.75
    model.train(1, 8)
    assert model.replay_buffer.importance_exponent == pytest.approx(0.55)
    model = build(priority_exponent=0.6).learn(60)
    assert model.replay_buffer.importance_exponent == pytest.approx(1.0)


def test_a_saved_model_keeps_its_priorities(tmp_path):
    model = build(priority_exponent=0.6, n_steps=3, num_envs=2).learn(80)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    env = DummyVecEnv([lambda: Tiny(FACTORED)] * 2)
    loaded = GumbelSAC.load(tmp_path / "model", env=env, device="cpu")
    loaded.load_replay_buffer(tmp_path / "replay")
    stored = (each.replay_buffer.store["priority"] for each in (model, loaded))
    torch.testing.assert_close(*stored, rtol=0, atol=0)
    loaded.learn(80, reset_num_timesteps=False)
    assert isinstance(loaded.replay_buffer, DeviceReplayBuffer)


def test_priorities_under_vec_normalize_are_refused():
    env = VecNormalize(DummyVecEnv([lambda: Tiny(FACTORED)]))
    with pytest.raises(ValueError, match="priority_exponent would be ignored under VecNormalize"):
        GumbelSAC("MlpPolicy", env, priority_exponent=0.6, device="cpu")


# --- "why not just use the probabilities?" ----------------------------------------------------


@pytest.mark.parametrize("estimator", ["probabilities", "gumbel_softmax"])
def test_a_relaxed_estimator_feeds_the_critic_soft_actions_in_the_actors_loss_alone(estimator):
    """The agent acts hard; `Tiny` asserts that every action is of its space."""
    model = build(estimator=estimator).learn(60)
    seen: list[Tensor] = []
    model.critic.network.register_forward_pre_hook(lambda _, args: seen.append(args[1].detach()))
    model.critic_target.network.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    batch = model.replay_buffer.sample(16)
    torch.manual_seed(2)
    model.update_actor(batch.observations, 0.7)
    (soft,) = seen
    torch.testing.assert_close(soft.sum(-1), torch.ones(16, 2))
    assert ((soft > 0).sum(-1) == torch.tensor([3, 2])).all()
    seen.clear()
    model.update_critic(batch)
    for hard in seen:  # of the target and of the loss
        assert torch.equal(hard.amax(-1), torch.ones(16, 2))
        assert torch.equal((hard > 0).sum(-1), torch.ones(16, 2, dtype=torch.int64))
    assert len(seen) == 2
    actions = model.predict(np.zeros((50, 3), np.float32))[0]
    assert all(FACTORED.contains(action) for action in actions)


def test_probabilities_in_the_actors_loss_are_those_of_the_policy():
    model = filled(estimator="probabilities", ent_coef=0.0)
    obs = model.replay_buffer.sample(16).observations
    expected = -model.critic(obs, model.actor(obs).probs).amin(0).mean()
    torch.testing.assert_close(model.update_actor(obs, 1.0)["train/actor_loss"], expected.detach())


# --- the variance of the gradient -------------------------------------------------------------


def test_the_variance_of_an_exact_gradient_is_zero():
    settings = {"critic": "multilinear", "estimator": "straight_through"}
    model = filled(spaces.Discrete(3), **settings)
    metrics = model.probe_estimator(model.replay_buffer.sample(16).observations, 1.0)
    assert metrics["estimator/variance"].item() == pytest.approx(0, abs=1e-8)


def test_cosine_and_variance_of_a_gradient_are_those_of_the_enumeration():
    """Plain straight-through on one state: every sample's gradient, weighted by its probability."""
    model = filled(critic="multilinear", estimator="straight_through", policy_kwargs={"rank": 2})
    randomize(model.critic)
    with torch.no_grad():
        model.critic.network.output.weight.mul_(4)  # else hardly anything is noise
    obs = model.replay_buffer.sample(1).observations
    parameters = list(model.actor.parameters())

    def flat(value: Tensor) -> Tensor:
        grads = torch.autograd.grad(value, parameters, retain_graph=True)
        return torch.cat([grad.flatten() for grad in grads])

    policy = model.actor(obs)
    weights, gradients = [], []
    for one_hot in joint_one_hots(model.layout, torch.device("cpu")):
        sample = ESTIMATORS["straight_through"](
            policy.logits, mask=policy.mask, noise=1e3 * one_hot[None]
        )
        value = model.critic.network.actor_value(obs, sample.one_hot)
        gradients.append(flat(value.sum()))
        weights.append(policy.log_prob(sample.one_hot.detach()).exp().detach())
    draws, odds = torch.stack(gradients), torch.cat(weights)
    mean = odds @ draws  # unbiased here, so this is the enumerated gradient too
    variance = odds @ (draws - mean).square().sum(-1) / mean.square().sum()
    cosines = draws @ mean / (draws.norm(dim=-1) * mean.norm())
    cosine = odds @ cosines
    assert cosine < 0.99
    deviation = (odds @ (cosines - cosine).square()).sqrt()
    torch.manual_seed(0)
    count = 150
    measured = [model.probe_estimator(obs, 1.0) for _ in range(count)]
    assert PROBE_DRAWS == 8
    variances = torch.stack([row["estimator/variance"] for row in measured])
    assert variances.mean().item() == pytest.approx(variance.item(), rel=0.15)
    mean_cosine = torch.stack([row["estimator/cosine"] for row in measured]).mean()
    assert abs(mean_cosine - cosine) < 5 * deviation / math.sqrt(count * PROBE_DRAWS)


def test_a_gradient_of_nothing_has_no_variance():
    model = filled(ent_coef=0.0)
    with torch.no_grad():
        model.critic.network.output.weight.zero_()
        model.critic.network.output.bias.zero_()
    metrics = model.probe_estimator(model.replay_buffer.sample(16).observations, 1.0)
    assert metrics["estimator/variance"] == 0
