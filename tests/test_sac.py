"""GumbelSAC's update rule: what it learns from, towards what, and through what."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_envs import Tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rl_gumbel import ESTIMATORS, GumbelSAC, Schedule
from rl_gumbel.algorithms.objective import ACTOR_GRADIENTS
from rl_gumbel.losses import exact_value, joint_one_hots
from rl_gumbel.networks import CRITICS

SPACES = {
    "discrete": spaces.Discrete(3, start=5),
    "multi_discrete": spaces.MultiDiscrete([3, 2], start=[-1, 4]),
    "multi_binary": spaces.MultiBinary(3),
}
FACTORED = SPACES["multi_discrete"]
EVERY_SPACE = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
EVERY_CRITIC = pytest.mark.parametrize("critic", list(CRITICS))
EVERY_GRADIENT = pytest.mark.parametrize("actor_gradient", ACTOR_GRADIENTS)


def build(space: spaces.Space[Any] = FACTORED, num_envs: int = 1, **kwargs: Any) -> GumbelSAC:
    """A small model whose logger keeps everything."""
    settings = {
        "learning_starts": 20,
        "buffer_size": 400,
        "batch_size": 16,
        "cosine_interval": 0,
        "seed": 0,
        "device": "cpu",
    }
    policy_kwargs = {"net_arch": [16], **kwargs.pop("policy_kwargs", {})}
    env = DummyVecEnv([lambda: Tiny(space)] * num_envs)
    model = GumbelSAC("MlpPolicy", env, policy_kwargs=policy_kwargs, **(settings | kwargs))
    model.set_logger(configure(None, []))
    return model


def filled(space: spaces.Space[Any] = FACTORED, **kwargs: Any) -> GumbelSAC:
    """A small model after its warm-up."""
    return build(space, **kwargs).learn(20, log_interval=None)


def batch_of(model: GumbelSAC, size: int = 16) -> Any:
    return model.replay_buffer.sample(size, env=model._vec_normalize_env)


def vector(module: torch.nn.Module) -> Tensor:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def logged(model: GumbelSAC) -> dict[str, Any]:
    return model.logger.name_to_value


def randomize(module: torch.nn.Module) -> None:
    """Weights far from those of any other module."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)


def set_logits(model: GumbelSAC, flat: list[float]) -> None:
    """Make the policy the same for every observation."""
    last = model.actor.network.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor(flat))


# --- it runs ----------------------------------------------------------------------------------


@EVERY_SPACE
@EVERY_CRITIC
@EVERY_GRADIENT
def test_every_space_critic_and_gradient_trains(space, critic, actor_gradient):
    model = build(space, critic=critic, actor_gradient=actor_gradient)
    before = vector(model.actor), vector(model.critic), vector(model.critic_target)
    model.learn(40, log_interval=None)
    assert logged(model)["train/n_updates"] == 20
    for name in ("train/actor_loss", "train/critic_loss", "estimator/grad_norm"):
        assert math.isfinite(logged(model)[name])
    after = vector(model.actor), vector(model.critic), vector(model.critic_target)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for deterministic in (True, False):
        action, _ = model.predict(np.zeros(3, np.float32), deterministic=deterministic)
        assert space.contains(action if action.ndim else action.item())


@EVERY_CRITIC
@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_every_estimator_moves_the_actor_through_the_action_alone(estimator, critic):
    """There is no entropy bonus; nothing but the critic's slope can move it."""
    model = filled(estimator=estimator, critic=critic, ent_coef=0.0)
    before = vector(model.actor)
    metrics = model.update_actor(batch_of(model).observations, 1.0)
    assert metrics["train/actor_loss"].isfinite()
    assert metrics["estimator/grad_norm"] > 0
    assert not torch.equal(vector(model.actor), before)


@pytest.mark.parametrize(
    ("estimator", "options"),
    [*((name, {}) for name in ESTIMATORS), ("gumbel_rao", {"num_samples": 2})],
)
def test_actor_climbs_by_the_gradient_of_its_estimator(estimator, options):
    """The same noise through the estimator by hand gives the same gradient."""
    model = filled(estimator=estimator, estimator_kwargs=options, ent_coef=0.0)
    obs = batch_of(model).observations
    torch.manual_seed(3)
    logits = model.actor.network(obs)
    sample = ESTIMATORS[estimator](logits, temperature=1.3, mask=model.layout.mask, **options)
    loss = -model.critic(obs, sample.one_hot).amin(0).mean()
    parameters = list(model.actor.parameters())
    expected = torch.autograd.grad(loss, parameters)
    torch.manual_seed(3)
    metrics = model.update_actor(obs, 1.3)
    torch.testing.assert_close(metrics["train/actor_loss"], loss.detach())
    torch.testing.assert_close([p.grad for p in parameters], list(expected))
    norm = torch.cat([gradient.flatten() for gradient in expected]).norm()
    torch.testing.assert_close(metrics["estimator/grad_norm"], norm)


@EVERY_CRITIC
@EVERY_GRADIENT
def test_a_critic_blind_to_the_action_leaves_the_actor_in_place(critic, actor_gradient):
    """The control of the test above: the same step, but the critic has no slope."""
    model = filled(critic=critic, actor_gradient=actor_gradient, ent_coef=0.0)
    with torch.no_grad():
        model.critic.network.output.weight.zero_()
        model.critic.network.output.bias.zero_()
    before = vector(model.actor)
    model.update_actor(batch_of(model).observations, 1.0)
    assert torch.equal(vector(model.actor), before)


# --- what is stored ---------------------------------------------------------------------------


@EVERY_SPACE
def test_replay_stores_the_actions_of_the_environment(space):
    """In its dtype, its start included, warm-up and policy alike."""
    model = build(space, num_envs=2).learn(60)
    actions = model.replay_buffer.actions[: model.replay_buffer.pos]
    assert actions.shape == (30, 2, model.layout.num_factors)
    assert actions.dtype == space.dtype
    for action in actions.reshape(60, -1):
        assert space.contains(action[0] if isinstance(space, spaces.Discrete) else action)


@EVERY_SPACE
def test_warm_up_is_uniform_over_the_true_space(space):
    """Each category of each factor within 4 sigma of its share."""
    model = build(space, learning_starts=400, buffer_size=400).learn(400)
    assert model._n_updates == 0
    index = model.layout.to_index(model.replay_buffer.actions[:, 0])
    for factor, size in enumerate(model.layout.sizes):
        counts = torch.bincount(index[:, factor], minlength=size)
        spread = math.sqrt(400 * (1 / size) * (1 - 1 / size))
        assert (counts - 400 / size).abs().max() < 4 * spread


# --- the critic's target ----------------------------------------------------------------------


def add_rows(model: GumbelSAC) -> Any:
    """A row that goes on, one that terminated and one cut by a time limit; return the batch."""
    rng = np.random.default_rng(0)
    for done, info in ((0, {}), (1, {}), (1, {"TimeLimit.truncated": True})):
        obs, next_obs = rng.normal(size=(2, 1, 3))
        action = np.array([model.action_space.sample()])
        model.replay_buffer.add(obs, next_obs, action, rng.normal(size=1), np.array([done]), [info])
    return model.replay_buffer._get_samples(np.arange(3))


@EVERY_SPACE
@pytest.mark.parametrize("ent_coef", [0.3, 0.0, "auto_0.3"])
@EVERY_CRITIC
def test_critic_regresses_to_the_soft_target_by_hand(space, critic, ent_coef):
    """scale * r + gamma (min_e Q'_e(s', a') + alpha H(s')), with a timeout bootstrapped.

    H is exact, Q' the target network; a' is sampled for the concat critic, and in expectation, by
    enumeration here, for the multilinear one.
    """
    model = build(space, critic=critic, ent_coef=ent_coef, reward_scale=0.1, gamma=0.9)
    randomize(model.critic_target)
    batch = add_rows(model)
    alpha = 0.3 if ent_coef == "auto_0.3" else ent_coef
    with torch.no_grad():
        policy = model.actor(batch.next_observations)
        torch.manual_seed(7)
        index = policy.sample()
        value, entropy = torch.zeros(3), torch.zeros(3)
        for row in range(3):
            next_obs = batch.next_observations[row : row + 1]
            expected = torch.zeros(2)
            for joint in np.ndindex(*model.layout.sizes):
                probability = math.prod(policy.probs[row, k, i].item() for k, i in enumerate(joint))
                entropy[row] -= probability * math.log(probability)
                one_hot = model.layout.index_to_one_hot(torch.tensor([joint]))
                q = model.critic_target(next_obs, one_hot)[:, 0]
                is_sample = float(joint == tuple(index[row].tolist()))
                expected += (probability if critic == "multilinear" else is_sample) * q
            value[row] = expected.min()
        bootstrap = torch.tensor([1.0, 0.0, 1.0])
        rewards = torch.tensor(model.replay_buffer.rewards[:3, 0])
        target = 0.1 * rewards + 0.9 * bootstrap * (value + alpha * entropy)
        one_hot = model.layout.to_one_hot(model.replay_buffer.actions[:3, 0])
        errors = model.critic(batch.observations, one_hot) - target
        expected_loss = 0.5 * (errors[0].square().mean() + errors[1].square().mean())
    torch.manual_seed(7)
    before = vector(model.actor), vector(model.critic_target)
    loss = model.update_critic(batch)["train/critic_loss"]
    torch.testing.assert_close(loss, expected_loss)
    assert torch.equal(vector(model.actor), before[0])
    assert torch.equal(vector(model.critic_target), before[1])


def test_n_step_targets_by_hand():
    """Three rewards, then gamma cubed of what follows; fewer where the episode ended."""
    model = build(n_steps=3, critic="multilinear", ent_coef=0.0, gamma=0.5)
    rng = np.random.default_rng(0)
    next_obs = rng.normal(size=(5, 1, 3))
    for row, done in enumerate([0, 0, 0, 0, 1]):
        action = np.array([model.action_space.sample()])
        reward, is_done = np.array([row + 1.0]), np.array([done])
        model.replay_buffer.add(next_obs[row - 1], next_obs[row], action, reward, is_done, [{}])
    batch = model.replay_buffer._get_samples(np.array([0, 3]))
    with torch.no_grad():
        last = torch.tensor(next_obs[2], dtype=torch.float32)
        value = model.critic_target(last, model.actor(last).probs).min().item()
        target = torch.tensor([1 + 0.5 * 2 + 0.25 * 3 + 0.125 * value, 4 + 0.5 * 5])
        one_hot = model.layout.to_one_hot(model.replay_buffer.actions[[0, 3], 0])
        errors = model.critic(batch.observations, one_hot) - target
    loss = model.update_critic(batch)["train/critic_loss"]
    torch.testing.assert_close(loss, 0.5 * errors.square().mean(-1).sum())


@EVERY_CRITIC
def test_target_critic_starts_as_a_copy(critic):
    model = build(critic=critic)
    assert torch.equal(vector(model.critic_target), vector(model.critic))


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_target_critic_follows_at_its_rate(tau):
    model = filled(tau=tau)
    start = vector(model.critic_target)
    model.train(1, 16)
    expected = (1 - tau) * start + tau * vector(model.critic)
    torch.testing.assert_close(vector(model.critic_target), expected)


def test_target_critic_waits_for_its_interval():
    model = filled(tau=1.0, target_update_interval=3)
    start = vector(model.critic_target)
    model.train(2, 16)
    assert torch.equal(vector(model.critic_target), start)
    model.train(1, 16)
    assert torch.equal(vector(model.critic_target), vector(model.critic))


# --- the actor's step -------------------------------------------------------------------------


@EVERY_CRITIC
@EVERY_GRADIENT
def test_actor_step_leaves_the_critic_alone(critic, actor_gradient):
    """Neither its weights nor their gradients: the loss passes through it."""
    model = filled(critic=critic, actor_gradient=actor_gradient)
    model.critic.optimizer.zero_grad()
    before = vector(model.critic)
    model.update_actor(batch_of(model).observations, 1.0)
    assert torch.equal(vector(model.critic), before)
    assert all(parameter.grad is None for parameter in model.critic.parameters())


def test_actor_climbs_to_the_better_action():
    """Q = 1 for the second of two actions, 0 for the first, written into the critic's bias."""
    model = filled(spaces.Discrete(2), critic="multilinear", learning_rate=1e-2)
    with torch.no_grad():
        model.critic.network.output.weight.zero_()
        model.critic.network.output.bias.copy_(torch.tensor([0.0, 1.0]))
    obs = batch_of(model).observations
    before = model.actor(obs).probs[:, 0, 1].mean()
    for _ in range(20):
        model.update_actor(obs, 1.0)
    assert model.actor(obs).probs[:, 0, 1].mean() > before + 0.05


def test_entropy_bonus_has_the_exact_gradient():
    """Of a critic that is zero nothing else is left: alpha times torch's own entropy."""
    model = filled(critic="multilinear", ent_coef=0.7)
    with torch.no_grad():
        model.critic.network.output.weight.zero_()
        model.critic.network.output.bias.zero_()
    obs = batch_of(model).observations
    logits = model.actor(obs).logits
    oracle = sum(
        torch.distributions.Categorical(logits=logits[:, k, :size]).entropy()
        for k, size in enumerate(model.layout.sizes)
    )
    loss = -0.7 * oracle.mean()
    parameters = list(model.actor.parameters())
    expected = torch.autograd.grad(loss, parameters)
    metrics = model.update_actor(obs, 1.0)
    torch.testing.assert_close(metrics["train/actor_loss"], loss.detach())
    torch.testing.assert_close([p.grad for p in parameters], list(expected))


def test_gradient_norm_is_measured_before_it_is_clipped():
    model = filled(max_grad_norm=1e-3)
    norm = model.update_actor(batch_of(model).observations, 1.0)["estimator/grad_norm"]
    clipped = torch.cat([p.grad.flatten() for p in model.actor.parameters()]).norm()
    assert norm > 1e-3
    torch.testing.assert_close(clipped, torch.tensor(1e-3), rtol=1e-3, atol=0)


def test_critic_gradients_are_clipped_too():
    model = filled(max_grad_norm=1e-3)
    model.update_critic(batch_of(model))
    clipped = torch.cat([p.grad.flatten() for p in model.critic.parameters()]).norm()
    torch.testing.assert_close(clipped, torch.tensor(1e-3), rtol=1e-3, atol=0)


# --- entropy ----------------------------------------------------------------------------------


@EVERY_SPACE
def test_target_entropy_is_a_fraction_of_the_maximum(space):
    sizes = {"Discrete": [3], "MultiDiscrete": [3, 2], "MultiBinary": [2, 2, 2]}
    most = sum(math.log(size) for size in sizes[type(space).__name__])
    assert build(space).target_entropy == pytest.approx(0.5 * most)
    assert build(space, target_entropy_fraction=0.1).target_entropy == pytest.approx(0.1 * most)
    assert build(space, target_entropy=0.4).target_entropy == 0.4


@pytest.mark.parametrize(
    ("logits", "direction"),
    [([0.0] * 5, -1), ([9.0, 0.0, 0.0, 9.0, 0.0], 1)],
    ids=["too much entropy", "too little entropy"],
)
def test_coefficient_moves_against_the_surplus_of_entropy(logits, direction):
    model = filled(ent_coef="auto_0.1", learning_rate=1e-3)
    set_logits(model, logits)
    model.update_actor(batch_of(model).observations, 1.0)
    # Adam's first step is the learning rate.
    moved = model.log_ent_coef.item() - math.log(0.1)
    assert moved == pytest.approx(direction * 1e-3, rel=1e-2)


def test_a_fixed_coefficient_stays():
    model = build(ent_coef=0.3).learn(40, log_interval=None)
    assert logged(model)["train/ent_coef"] == pytest.approx(0.3)
    assert "train/ent_coef_loss" not in logged(model)


def test_coefficient_starts_where_it_is_told():
    assert build(ent_coef="auto").log_ent_coef.item() == 0
    assert build(ent_coef="auto_0.25").log_ent_coef.item() == pytest.approx(math.log(0.25))


def test_entropy_is_logged_as_a_fraction_of_the_maximum():
    """The uniform policy has all of it; a factor of one category has none to have."""
    model = filled(spaces.MultiDiscrete([3, 1, 2]))
    set_logits(model, [0.0] * 6)
    metrics = model.update_actor(batch_of(model).observations, 1.0)
    assert metrics["estimator/entropy"].item() == pytest.approx(1)
    per_factor = metrics["estimator/entropy_per_factor"]
    torch.testing.assert_close(per_factor, torch.tensor([1.0, 0.0, 1.0]))


def test_a_space_of_one_action_trains():
    model = build(spaces.Discrete(1)).learn(30, log_interval=None)
    assert logged(model)["estimator/entropy"] == 0
    assert math.isfinite(logged(model)["train/critic_loss"])


# --- the probe of the gradient ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "kwargs"),
    [
        (SPACES["discrete"], {"actor_gradient": "local_expectation"}),
        (SPACES["discrete"], {"critic": "multilinear", "estimator": "straight_through"}),
    ],
    ids=["local expectation", "straight-through and a Q-vector"],
)
def test_cosine_of_an_exact_estimator_is_one(space, kwargs):
    model = filled(space, **kwargs)
    cosine = model.probe_estimator(batch_of(model).observations, 1.0)["estimator/cosine"]
    assert cosine.item() == pytest.approx(1, abs=1e-5)


def test_cosine_of_a_noisy_estimator_is_not_one():
    model = filled()
    cosine = model.probe_estimator(batch_of(model).observations, 1.0)["estimator/cosine"].item()
    assert -1 <= cosine < 0.999


def test_cosine_probe_changes_no_weights():
    model = filled()
    before = vector(model.actor), vector(model.critic)
    model.probe_estimator(batch_of(model).observations, 1.0)
    assert torch.equal(vector(model.actor), before[0])
    assert torch.equal(vector(model.critic), before[1])


def test_cosine_is_measured_at_its_interval():
    model = filled(cosine_interval=3)
    measured = []
    for _ in range(6):
        logged(model).clear()
        model.train(1, 8)
        measured.append("estimator/cosine" in logged(model))
    assert measured == [True, False, False, True, False, False]


@pytest.mark.parametrize(
    ("space", "kwargs"),
    [
        (FACTORED, {"cosine_interval": 0}),
        (FACTORED, {"cosine_interval": 1, "actor_gradient": "exact"}),
        (spaces.MultiBinary(9), {"cosine_interval": 1}),
    ],
    ids=["off", "exact already", "512 joint actions"],
)
def test_cosine_is_not_measured(space, kwargs):
    model = filled(space, **kwargs)
    model.train(1, 8)
    assert "estimator/cosine" not in logged(model)


@pytest.mark.parametrize("aggregation", ["min", "mean"])
@pytest.mark.parametrize("space", [SPACES["discrete"], FACTORED], ids=["one", "several"])
def test_the_exact_gradient_through_a_multilinear_critic_is_that_of_enumeration(space, aggregation):
    model = filled(space, critic="multilinear", aggregation=aggregation)
    obs = batch_of(model).observations
    policy, features = model.actor(obs), model.critic.features(obs)

    def values(joint):
        rows = features.expand(len(joint), -1, -1).flatten(0, 1)
        flat = model.critic.network.actor_value(rows, joint.flatten(0, 1), aggregation == "mean")
        return flat.unflatten(0, joint.shape[:2])

    theirs = exact_value(policy, joint_one_hots(model.objective.layout, model.device), values)
    mine = model.objective.value(policy, model.critic, obs, 1.0, "exact")
    torch.testing.assert_close(mine, theirs)
    weights = list(model.actor.parameters())
    gradients = [
        torch.autograd.grad(value.sum(), weights, retain_graph=True, materialize_grads=True)
        for value in (mine, theirs)
    ]
    torch.testing.assert_close(*gradients)


def test_cosine_is_measured_for_any_number_of_joint_actions_through_a_multilinear_critic():
    """Plain straight-through is exact in expectation, and every one of its draws is near."""
    model = filled(
        spaces.MultiDiscrete([5] * 8),
        cosine_interval=1,
        critic="multilinear",
        estimator="straight_through",
    )
    model.train(1, 8)
    assert 0.5 < logged(model)["estimator/cosine"] <= 1 + 1e-5
    assert logged(model)["estimator/variance"] > 0


# --- schedules --------------------------------------------------------------------------------


def test_temperature_and_learning_rate_follow_their_schedules():
    """By hand, a quarter of training left: 2 + 0.75 (1 - 2) and 1e-3 * 0.25."""
    model = filled(
        temperature=Schedule("linear", 2.0, 1.0), learning_rate=Schedule("linear", 1e-3, 0.0)
    )
    model._current_progress_remaining = 0.25
    model.train(1, 8)
    assert logged(model)["estimator/temperature"] == pytest.approx(1.25)
    assert logged(model)["train/learning_rate"] == pytest.approx(2.5e-4)
    for optimizer in (model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2.5e-4)


def test_a_schedule_reaches_its_end_with_training():
    temperature = {"schedule": "exponential", "start": 2.0, "end": 0.5}
    model = build(temperature=temperature).learn(40, log_interval=None)
    assert logged(model)["estimator/temperature"] == pytest.approx(0.5)


def test_temperature_reaches_the_estimator():
    """Straight-through Gumbel at a huge temperature has next to no gradient."""
    model = filled(ent_coef=0.0)
    obs = batch_of(model).observations
    warm = model.update_actor(obs, 1.0)["estimator/grad_norm"]
    hot = model.update_actor(obs, 1e4)["estimator/grad_norm"]
    assert hot < 1e-2 * warm


def test_default_temperature_is_that_of_the_estimator():
    model = filled(estimator="gumbel_rao")
    model.train(1, 8)
    assert logged(model)["estimator/temperature"] == 0.5


# --- on the device ----------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Lists the operations that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "equal")
        if name.removeprefix("aten::").partition(".")[0] in waits:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@EVERY_SPACE
@EVERY_CRITIC
@EVERY_GRADIENT
def test_updates_never_wait_for_the_device(space, critic, actor_gradient):
    """A read inside would stop a GPU at every step. Adam is fused, as the networks' is."""
    model = filled(space, critic=critic, actor_gradient=actor_gradient, max_grad_norm=1.0)
    model.ent_coef_optimizer = torch.optim.Adam([model.log_ent_coef], fused=True)
    batch = batch_of(model)
    model.update_critic(batch)  # what is made once may be made here
    model.update_actor(batch.observations, 1.0)
    with Reads() as reads:
        model.update_critic(batch)
        model.update_actor(batch.observations, 1.0)
        if actor_gradient == "estimator":
            model.probe_estimator(batch.observations, 1.0)
    assert reads.seen == []


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_no_estimator_waits_for_the_device(estimator):
    model = filled(estimator=estimator)
    model.ent_coef_optimizer = torch.optim.Adam([model.log_ent_coef], fused=True)
    obs = batch_of(model).observations
    model.update_actor(obs, 1.0)
    with Reads() as reads:
        model.update_actor(obs, 1.0)
    assert reads.seen == []


# --- masks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [True, False])
def test_policy_obeys_masks(deterministic):
    """The closed category of each factor is by far the most probable one, action [-1, 5]."""
    model = build(FACTORED)
    set_logits(model, [9.0, 0.0, 0.0, 0.0, 9.0])
    mask = np.array([False, True, True, True, False])
    obs = np.zeros((50, *model.observation_space.shape), np.float32)
    actions, _ = model.policy.predict(obs, deterministic=deterministic, action_masks=mask[None])
    assert (actions[:, 0] >= 0).all() and (actions[:, 1] == 4).all()
    free, _ = model.policy.predict(obs, deterministic=True)  # the mask was for one prediction
    assert (free == [-1, 5]).all()
    index = model.policy.act(torch.as_tensor(obs), model.layout.unflatten(torch.tensor(mask))[None])
    assert (index[:, 0] > 0).all() and (index[:, 1] == 0).all()
