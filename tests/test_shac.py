"""GumbelSHAC's update rule: the gradient of its window, the critic, the mixtures, the device."""

import dataclasses
import inspect
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from device_reads import DeviceReads
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from tiny_batched import Push
from torch import Tensor

from rl_gumbel import ESTIMATORS, GumbelSHAC
from rl_gumbel.algorithms import shac as shac_module
from rl_gumbel.algorithms.optimize import descend
from rl_gumbel.algorithms.shac import Window
from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.cartpole import CartPole
from rl_gumbel.envs.inventory import Inventory
from rl_gumbel.envs.pendulum import DiscretePendulum
from rl_gumbel.envs.pendulum_bank import PendulumBank
from rl_gumbel.envs.queue_network import QueueNetwork
from rl_gumbel.envs.taxi import Taxi
from rl_gumbel.envs.thermostats import Thermostats
from rl_gumbel.normalize import EPSILON

LINEAR = {"net_arch": {"pi": [], "vf": []}}
SMALL = {"net_arch": [16]}
MIXTURES = pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])


def build(env: TorchEnv, **kwargs: Any) -> GumbelSHAC:
    """A small model with environments that are reset, and a logger that keeps everything."""
    settings = {"n_steps": 8, "ent_coef": 0.0, "policy_kwargs": SMALL, "seed": 0, "device": "cpu"}
    model = GumbelSHAC("MlpPolicy", env, **(settings | kwargs))
    model.set_logger(configure(None, []))
    model._total_timesteps, model.batched = 10_000, env
    model._obs = env.reset(seed=0)
    return model


def gather(model: GumbelSHAC) -> Window:
    """Collect a window and return it as the actor and the critic learn from it."""
    model.rollout, model._obs = model.collect(model.n_steps, lambda step: True)
    return model.prepare()


def vector(module: torch.nn.Module) -> Tensor:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def gradient(model: GumbelSHAC, window: Window) -> list[Tensor]:
    parameters = list(model.policy.actor.parameters())
    return list(torch.autograd.grad(model.actor_loss(window), parameters, retain_graph=True))


def flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in gradients])


# --- the gradient by hand -----------------------------------------------------------------------

GAMMA, SLOPE = 0.5, 3.0
WHOLE = (1 + GAMMA + GAMMA**2 * SLOPE, GAMMA + GAMMA**2 * SLOPE)
CASES = {
    # J = s1 + gamma s2 + gamma^2 V(s2), V(s) = SLOPE s; s1 = s0 + m0, s2 = s1 + m1.
    "no end": (1.0, 0, "", WHOLE),
    # J = s1 + (s2 + gamma V(s2)), s2 = 0 or 1, plus m1: the discount starts again.
    "terminated at first": (3.5, 0, "terminated 0", (1, 1 + GAMMA * SLOPE)),
    # J = s1 + gamma s2: nothing follows.
    "terminated at last": (2.0, 0, "terminated 1", (1 + GAMMA, GAMMA)),
    # J = s1 + gamma V(s1) + (s2 + gamma V(s2)).
    "truncated at first": (1.5, 8, "truncated 0", (1 + GAMMA * SLOPE, 1 + GAMMA * SLOPE)),
    # The value of the last observation of the episode, not of the next episode's first.
    "truncated at last": (1.0, 7, "truncated 1", WHOLE),
}


@pytest.mark.parametrize(("place", "length", "end", "expected"), CASES.values(), ids=CASES)
def test_the_gradient_of_two_steps_is_the_one_by_hand(place, length, end, expected):
    """Straight-through at temperature 1: dJ/dlogits = sum_t c_t p (m - p m), c_t = dJ/dm_t.

    The policy is the same everywhere, so that the derivative of its weight weighs each step with
    its observation, and that of its bias does not.
    """
    model = build(
        Push(1, 9), n_steps=2, gamma=GAMMA, estimator="straight_through", policy_kwargs=LINEAR,
        num_minibatches=1,
    )  # fmt: skip
    actor, critic = model.policy.actor.network.layers[-1], model.policy.critic_target.layers[-1]
    with torch.no_grad():
        actor.weight.zero_()
        actor.bias.copy_(torch.tensor([0.0, 3.0]))
        critic.weight.fill_(SLOPE)
        critic.bias.zero_()
    env = model.batched
    env.state["place"][:] = place
    env.episode_length[:] = length
    model._obs = env.observe(env.state)
    window = gather(model)
    for name in ("terminated", "truncated"):
        ends = getattr(model.rollout, name).squeeze(-1).tolist()
        assert ends == [end == f"{name} {time}" for time in range(2)]
    p = actor.bias.detach().softmax(-1)
    weights = torch.tensor(expected) / -2  # the loss is minus the mean over the steps
    seen = model.rollout.obs[:2, 0, 0].detach()
    assert seen[0] != seen[1]
    slope = p * (torch.tensor([0.0, 1.0]) - p[1])
    found = gradient(model, window)
    torch.testing.assert_close(found[1], weights.sum() * slope)
    torch.testing.assert_close(found[0].squeeze(-1), (weights * seen).sum() * slope)


def test_the_gradient_is_that_of_finite_differences():
    """Through policy, simulator, truncation, critic and bonus, along the gradient itself.

    Probabilities instead of samples make the objective a function of the weights.
    """
    model = build(
        DiscretePendulum(16, 6), estimator="probabilities", ent_coef=0.3, gamma=0.9, seed=1,
        normalize_observations=True, reward_scale=0.5,
    )  # fmt: skip
    gather(model)
    model.update()  # statistics that change something
    env, actor, obs = model.batched, model.policy.actor, model._obs
    saved, weights = env.get_state(), vector(model.policy.actor)

    def window_at(step: Tensor) -> Window:
        torch.nn.utils.vector_to_parameters(weights + step, actor.parameters())
        env.set_state(saved)
        model._obs = obs
        return gather(model)

    found = flat(gradient(model, window_at(torch.zeros(()))))
    assert model.rollout.truncated.any()
    step = 1e-2 * found / found.norm()
    ahead, behind = (model.actor_loss(window_at(sign * step)).item() for sign in (1, -1))
    assert found.norm() > 0.03
    assert (ahead - behind) / 2e-2 == pytest.approx(found.norm().item(), rel=2e-3)


# --- pathwise, score function and mixtures ------------------------------------------------------


class Ledger(TorchEnv):
    """Two factors whose choices are worth something; the reward is the worth of all so far.

    Linear in every one-hot; over after three steps. What is observed depends on no action, so that
    no gradient passes through the policy's input.
    """

    differentiable = True

    def __init__(self, num_envs: int) -> None:
        box, space = spaces.Box(-1, 1, (1,)), spaces.MultiDiscrete([3, 2])
        super().__init__(num_envs, box, space, None)

    def initial(self) -> State:
        return {"worth": torch.zeros(self.num_envs), "time": torch.zeros(self.num_envs)}

    def transition(self, state, action):
        if not action.is_floating_point():
            action = self.layout.index_to_one_hot(action)
        worth = state["worth"] + (action * WORTH).sum((-2, -1))
        time = state["time"] + 1
        return {"worth": worth, "time": time}, worth, time == 3

    def observe(self, state):
        return (state["time"] - 1).unsqueeze(-1)


WORTH = torch.tensor([[1.0, -2.0, 0.5], [0.3, -1.0, 0.0]])


def enumerated(model: GumbelSHAC, start: int) -> Tensor:
    """The gradient of minus the objective of two steps, summed over all sequences of actions.

    The first step is the last of its episode if `start` is 2.
    """
    alpha, gamma = model.log_ent_coef.item(), model.gamma
    alpha = math.exp(alpha)
    times = torch.tensor([start, (start + 1) % 3])
    policy = model.policy.actor((times - 1.0).unsqueeze(-1))
    bonus = alpha * policy.entropy()
    last = (start + 2) % 3
    value = 0.0
    if last > 0:
        value = model.policy.critic_target(torch.tensor([[last - 1.0]])).item()
    total = torch.zeros(())
    joint = list(itertools.product(range(3), range(2)))
    for first, second in itertools.product(joint, joint):
        chance = policy.log_prob(torch.tensor([first, second])).sum().exp()
        gains = [float(WORTH[0, i] + WORTH[1, j]) for i, j in (first, second)]
        if start == 2:
            objective = gains[0] + bonus[0] + gains[1] + bonus[1] + gamma * value
        else:
            objective = gains[0] + bonus[0] + gamma * (sum(gains) + bonus[1]) + gamma**2 * value
        total = total + chance * objective
    return flat(list(torch.autograd.grad(-total / 2, list(model.policy.actor.parameters()))))


@pytest.mark.parametrize("start", [0, 1, 2], ids=["no end", "ends at last", "ends at first"])
@MIXTURES
def test_every_mixture_estimates_the_enumerated_gradient(weight, start):
    """Straight-through has no variance where rewards are linear, the score function some."""
    model = build(
        Ledger(2048), n_steps=2, gamma=0.8, gae_lambda=1.0, ent_coef=0.2,
        estimator="straight_through", score_function_weight=weight,
    )  # fmt: skip
    env, draws = model.batched, []
    for _ in range(16):
        env.reset()
        env.state["time"].fill_(start)
        model._obs = env.observe(env.state)
        draws.append(flat(gradient(model, gather(model))))
    draws = torch.stack(draws)
    error = draws.std(0) / 4
    assert (error.max() < 1e-5) == (weight == 0)
    expected = enumerated(model, start)
    assert expected.norm() > 0.1
    assert ((draws.mean(0) - expected).abs() <= 5 * error + 1e-5).all()


def test_a_mixture_is_the_weighted_sum_of_both_gradients():
    """On one window; the score function takes what was seen as constants, whatever made it."""
    model = build(PendulumBank(8, 5, n=2), ent_coef=0.1, score_function_weight=0.3)
    window = gather(model)
    found = flat(gradient(model, window))
    model.score_function_weight = 0.0  # prepared anew, from the same steps
    pathwise = flat(gradient(model, model.prepare()))
    model.score_function_weight = 1.0
    seen = model.rollout.obs.detach()
    model.rollout = dataclasses.replace(model.rollout, obs=seen)
    score = flat(gradient(model, model.prepare()))
    assert torch.cosine_similarity(score, pathwise, 0) < 0.9
    torch.testing.assert_close(found, 0.7 * pathwise + 0.3 * score)


# --- the window ---------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
@pytest.mark.parametrize(("make", "masked"), [(PendulumBank, False), (QueueNetwork, True)])
def test_every_estimator_trains(make, masked, estimator):
    """And plays what is legal; of each server's choices in a network of queues about half is."""
    model = build(make(4, 5), estimator=estimator)
    before = vector(model.policy.actor), vector(model.policy.critic)
    model.learn(96)
    assert (model.num_timesteps, model._n_updates) == (96, 3)
    assert not torch.equal(vector(model.policy.actor), before[0])
    assert not torch.equal(vector(model.policy.critic), before[1])
    assert all(torch.as_tensor(v).isfinite().all() for v in model.logger.name_to_value.values())
    index, mask = model.rollout.index, model.rollout.action_mask
    assert (mask is not None) == masked
    legal = model.batched.layout.valid.expand(8, 4, -1, -1) if mask is None else mask[:-1]
    assert legal.gather(-1, index.unsqueeze(-1)).all()


def test_windows_go_on_where_the_last_one_ended_and_share_no_gradient():
    model = build(PendulumBank(4, 100, n=2), n_steps=5)
    env = model.batched
    gather(model)
    last = model.rollout.obs[-1]
    assert last.requires_grad and not model._obs.requires_grad
    assert not any(value.requires_grad for value in env.state.values())
    assert env.gradients is False
    gather(model)
    assert torch.equal(model.rollout.obs[0], last)
    assert model.rollout.episode_length[-1].tolist() == [10] * 4


def test_a_state_with_a_past_starts_a_window_without_it():
    env = PendulumBank(2, n=1, gradients=True)
    model = build(env, n_steps=2)
    action = torch.full((2, 1, 5), 0.2, requires_grad=True)
    env.step(action)
    assert env.state["angle"].requires_grad
    loss = model.actor_loss(gather(model))
    assert env.gradients is True
    assert torch.autograd.grad(loss, action, allow_unused=True) == (None,)


@MIXTURES
def test_the_actors_step_leaves_the_critics_alone(weight):
    model = build(PendulumBank(4, 5, n=2), score_function_weight=weight)
    critics = model.policy.critic, model.policy.critic_target
    before = [vector(critic) for critic in critics]
    actor = vector(model.policy.actor)
    model.update_actor(gather(model))
    assert not torch.equal(vector(model.policy.actor), actor)
    assert all(torch.equal(vector(c), old) for c, old in zip(critics, before, strict=True))
    assert all(p.grad is None for critic in critics for p in critic.parameters())


def test_the_actor_learns_from_the_target_critic_alone():
    model = build(PendulumBank(4, n=2), estimator="straight_through")
    window = gather(model)
    with torch.no_grad():
        for parameter in model.policy.critic.parameters():
            parameter.fill_(math.nan)
    assert all(part.isfinite().all() for part in gradient(model, window))


@MIXTURES
def test_only_legal_actions_are_taken_and_trained(weight):
    model = build(Push(32, 5, fenced=True), score_function_weight=weight, policy_kwargs=LINEAR)
    window = gather(model)
    mask, index = model.rollout.action_mask[:-1], model.rollout.index
    assert mask.gather(-1, index.unsqueeze(-1)).all()
    fenced = ~mask[..., 1].flatten()
    assert fenced.any() and not fenced.all()
    assert (window.entropy[fenced] == 0).all() and (window.entropy[~fenced] > 0).all()
    assert all(part.isfinite().all() for part in gradient(model, window))
    assert torch.equal(window.samples.mask, mask.flatten(0, 1))


def test_normalised_rewards_have_their_gradient_divided_too():
    """By the deviation of the return, which is a constant."""
    found = []
    for is_on in (False, True):
        model = build(
            Push(8), policy_kwargs=LINEAR, normalize_rewards=is_on, reward_scale=3.0, gamma=0.0
        )
        found.append(flat(gradient(model, gather(model))))
    variance = model.reward_scaler.moments.variance
    assert abs(variance - 1) > 0.05 and not variance.requires_grad
    torch.testing.assert_close(found[1], found[0] * (variance + EPSILON).rsqrt())


def test_observations_are_normalised_by_the_statistics_of_earlier_windows():
    model = build(CartPole(16), normalize_observations=True, n_steps=32)
    samples = gather(model).samples
    raw = model.rollout.obs.detach()
    torch.testing.assert_close(samples.obs, raw[:-1].flatten(0, 1))  # none yet
    model.update()
    mean, std = raw[1:].mean((0, 1)), raw[1:].flatten(0, 1).std(0, correction=0)
    index = model.policy.distribution(raw[0]).mode
    assert torch.equal(index, model.policy.actor((raw[0] - mean) / std).mode)
    torch.testing.assert_close(model.policy.normalizer.mean, mean)
    assert not model.policy.normalizer.mean.requires_grad


# --- entropy ------------------------------------------------------------------------------------


def test_the_entropy_bonus_alone_has_the_exact_gradient():
    """Without rewards or values: -alpha sum_t gamma^t H_t / T, by the formula."""
    model = build(
        PendulumBank(4, n=2), ent_coef=0.3, gamma=0.9, reward_scale=1e-30, policy_kwargs=LINEAR
    )
    with torch.no_grad():
        for parameter in model.policy.critic_target.parameters():
            parameter.zero_()
    window = gather(model)
    log_probs = model.policy.actor(model.rollout.obs[:-1].flatten(0, 1)).log_probs
    entropy = -(log_probs.exp() * log_probs).sum((-2, -1)).view(8, 4)
    weights = 0.9 ** torch.arange(8.0).unsqueeze(-1)
    expected = -0.3 * (weights * entropy).sum(0).mean() / 8
    loss = model.actor_loss(window)
    torch.testing.assert_close(loss, expected)
    parameters = list(model.policy.actor.parameters())
    expected = torch.autograd.grad(expected, parameters, retain_graph=True)
    torch.testing.assert_close(gradient(model, window), list(expected))


@pytest.mark.parametrize(("entropy", "sign"), [(0.1, 1), (3.0, -1)], ids=["little", "much"])
def test_a_learned_coefficient_moves_towards_its_target(entropy, sign):
    model = build(PendulumBank(4, n=2), ent_coef="auto_0.2", target_entropy=1.0)
    before = model.log_ent_coef.item()
    assert before == pytest.approx(math.log(0.2))
    model.update_ent_coef(torch.full((4,), entropy), None, torch.tensor(True))
    assert (model.log_ent_coef.item() - before) * sign > 0


def test_the_entropy_target_is_lower_where_a_mask_leaves_less():
    """The gradient of the loss by hand: alpha times the mean surplus over targets."""
    model = build(PendulumBank(4, n=2), ent_coef="auto_0.5", target_entropy_fraction=0.4)
    mask = torch.ones(3, 2, 5, dtype=torch.bool)
    mask[0, :, 2:] = False
    mask[1, 0, 1:] = False
    most = [2 * math.log(2), math.log(5), 2 * math.log(5)]
    model.update_ent_coef(torch.tensor([0.5, 1.0, 2.0]), mask, torch.tensor(True))
    expected = 0.5 * (3.5 - 0.4 * sum(most)) / 3
    assert model.log_ent_coef.grad.item() == pytest.approx(expected, rel=1e-5)


# --- the critic ---------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
def test_targets_are_those_of_a_plain_loop(weight, ent_coef):
    """Environment by environment and step by step, with numbers read from the target critic."""
    model = build(
        Push(6, 4), n_steps=16, gamma=0.9, gae_lambda=0.7, reward_scale=0.5, ent_coef=ent_coef,
        score_function_weight=weight,
    )  # fmt: skip
    with torch.no_grad():  # the critic itself is another
        model.policy.critic_target.layers[-1].bias.fill_(2.0)
    samples, rollout = gather(model).samples, model.rollout
    assert rollout.terminated.any() and rollout.truncated.any()

    def value(seen: Tensor) -> float:
        return model.policy.critic_target(seen[None].detach()).item()

    for row in range(6):
        following = 0.0
        for time in reversed(range(16)):
            after = rollout.obs[time + 1, row]
            if rollout.truncated[time, row]:
                after = rollout.truncated_obs[time // 4, row]
            decay = 0.0 if time == 15 or rollout.truncated[time, row] else 0.7
            future = (1 - decay) * value(after) + decay * following
            future = 0.0 if rollout.terminated[time, row] else future
            seen = rollout.obs[time, row].detach()
            entropy = model.policy.actor(seen[None]).entropy().item()
            following = 0.5 * rollout.reward[time, row].item() + ent_coef * entropy + 0.9 * future
            position = time * 6 + row
            assert samples.target[position].item() == pytest.approx(following, rel=1e-4)
            advantage = following - value(seen)
            assert samples.advantage[position].item() == pytest.approx(advantage, abs=1e-4)
            torch.testing.assert_close(samples.obs[position], seen)


def test_the_critic_regresses_on_its_targets():
    model = build(PendulumBank(8, n=2), learning_rate=1e-2, max_grad_norm=None)
    samples = gather(model).samples
    errors = [model.update_critic(samples)["train/critic_loss"] for _ in range(300)]
    assert errors[-1] < 0.1 * errors[0]


def test_the_target_critic_follows_by_tau():
    model = build(PendulumBank(4, n=2), tau=0.25, n_epochs=1)
    before, target = vector(model.policy.critic), vector(model.policy.critic_target)
    assert torch.equal(before, target)
    gather(model)
    model.update()
    expected = target + 0.25 * (vector(model.policy.critic) - target)
    torch.testing.assert_close(vector(model.policy.critic_target), expected)
    assert not torch.equal(expected, target)


class Ring(TorchEnv):
    """Three states in a circle, rewards 1, 0, 5 on leaving them, two equal actions, no end."""

    differentiable = True

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, spaces.Box(0, 1, (3,)), spaces.Discrete(2), None)

    def initial(self) -> State:
        return {"place": torch.eye(3)[torch.arange(self.num_envs) % 3]}

    def transition(self, state, action):
        place = state["place"]
        never = torch.zeros(self.num_envs, dtype=torch.bool)
        return {"place": place.roll(1, -1)}, place @ torch.tensor([1.0, 0.0, 5.0]), never

    def observe(self, state):
        return state["place"]


@pytest.mark.parametrize(("gamma", "ent_coef"), [(1.0, 0.5), (0.9, 0.0)])
def test_values_of_a_task_without_end_are_differential(gamma, ent_coef):
    """h(i) = r(i) - 2 + gamma h(i + 1), the mean reward being 2; at gamma 1 up to a constant.

    By hand at gamma 1: h = (0, 1, 3). A bonus that is the same everywhere moves the mean alone.
    """
    model = build(
        Ring(6), gamma=gamma, average_reward_rate=0.1, n_steps=6, learning_rate=2e-2, tau=1.0,
        ent_coef=ent_coef, policy_kwargs=LINEAR,
    )  # fmt: skip
    model.learn(6 * 6 * 100)
    mean = 2 + ent_coef * math.log(2)
    assert model.reward_center.mean.item() == pytest.approx(mean, abs=0.01)
    with torch.no_grad():
        found = model.policy.critic(torch.eye(3))
    if gamma == 1:
        expected = torch.tensor([0.0, 1.0, 3.0])
        found = found - found[0]
    else:  # (I - gamma P) h = r - 2
        chain = torch.eye(3) - gamma * torch.eye(3).roll(1, -1)
        expected = torch.linalg.solve(chain, torch.tensor([-1.0, -2.0, 3.0]))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


# --- gradients that are not finite --------------------------------------------------------------

OPTIMIZERS = {
    "fused Adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("bad_at", [0, 2])
def test_a_step_that_is_not_finite_leaves_no_trace(make, bad, bad_at):
    """Weights go through the same values as without it, moments and all, bit for bit."""
    runs = []
    for skipping in (False, True):
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        optimizer, values = make([weight]), []
        for time in range(5):
            if skipping and time == bad_at:
                before = weight.detach().clone()
                norm, is_finite = descend(optimizer, (weight * bad).sum(), 1.0)
                assert not norm.isfinite() and not is_finite
                assert torch.equal(weight, before)
            loss = ((time + 1) * weight.square()).sum()
            if skipping:
                _, is_finite = descend(optimizer, loss, 1.0)
                assert is_finite
            else:
                descend(optimizer, loss, 1.0)
            values.append(weight.detach().clone())
        runs.append(torch.stack(values))
    assert torch.equal(*runs)


class Root(Push):
    """Rewards with an infinite slope at 0, where environments start."""

    def initial(self) -> State:
        return {"place": torch.zeros(self.num_envs, 1)}

    def transition(self, state, action):
        state, reward, terminated = super().transition(state, action)
        return state, reward.sqrt(), terminated


def test_windows_without_a_finite_gradient_are_skipped_and_counted():
    model = build(Root(4), n_steps=1, estimator="straight_through")
    first = model.policy.actor.network.layers[-1]
    with torch.no_grad():
        first.bias.copy_(torch.tensor([20.0, 0.0]))  # to stay at 0
    before = vector(model.policy.actor)
    for _ in range(3):
        gather(model)
        metrics = model.update()
    assert torch.equal(vector(model.policy.actor), before)
    assert metrics[0]["train/skipped_updates"] == model.skipped_updates == 3
    assert not metrics[0]["estimator/grad_norm"].isfinite()
    with torch.no_grad():
        first.bias.copy_(torch.tensor([0.0, 20.0]))  # away from it
    before = vector(model.policy.actor)
    gather(model)
    model.update()
    assert model.skipped_updates == 3
    assert not torch.equal(vector(model.policy.actor), before)


def test_the_norm_is_logged_as_it_was_before_clipping():
    model = build(PendulumBank(4, n=2), max_grad_norm=1e-3)
    window = gather(model)
    norm = flat(gradient(model, window)).norm()
    assert norm > 1e-2
    torch.testing.assert_close(model.update_actor(window)["estimator/grad_norm"], norm)
    taken = [parameter.grad for parameter in model.policy.actor.parameters()]
    torch.testing.assert_close(flat(taken).norm().item(), 1e-3, rtol=1e-2, atol=0)


# --- on the device ------------------------------------------------------------------------------

EVERYTHING = {
    "normalize_rewards": True,
    "ent_coef": "auto_0.1",
    "average_reward_rate": 0.1,
    "estimator": "gumbel_rao",
}
ROUTES = {
    "pathwise": (DiscretePendulum, EVERYTHING),
    "masked": (lambda *a, **kw: Push(*a, fenced=True, **kw), EVERYTHING),
    "bits": (Thermostats, EVERYTHING),
    "orders": (Inventory, EVERYTHING),
    "queues": (QueueNetwork, EVERYTHING),
    "mixed": (DiscretePendulum, {**EVERYTHING, "score_function_weight": 0.5}),
    "score function": (Taxi, {"score_function_weight": 1.0, "ent_coef": "auto"}),
}
EVERY_ROUTE = pytest.mark.parametrize(("make", "kwargs"), ROUTES.values(), ids=ROUTES)


def iterate(model: GumbelSHAC) -> None:
    """Collect and update, everything but the log."""
    model.rollout, model._obs = model.collect(model.n_steps, lambda step: True)
    model.update()


@EVERY_ROUTE
def test_an_iteration_never_waits_for_the_device(make, kwargs):
    """A read inside would stop a GPU at every step."""
    model = build(make(4, 3), normalize_observations=make is not Taxi, **kwargs)
    iterate(model)  # what is made once may be made here
    with DeviceReads() as reads:
        iterate(model)
    assert reads.seen == []


@EVERY_ROUTE
def test_an_iteration_runs_on_the_meta_device(make, kwargs):
    """Where there are no values, reading one raises, and so does mixing devices. Adam is plain."""
    model = build(
        make(4, 3, device="meta"),
        device="meta",
        normalize_observations=make is not Taxi,
        policy_kwargs={**SMALL, "optimizer_kwargs": {}},
        **kwargs,
    )
    iterate(model)
    iterate(model)
    assert model._obs.device.type == "meta"
    assert model._n_updates == 2


def test_the_files_of_the_loop_read_nothing():
    package = Path(inspect.getfile(shac_module)).parent.parent
    files = ["algorithms/shac.py", "algorithms/on_policy.py", "algorithms/optimize.py"]
    files += ["algorithms/samples.py", "rollout.py", "losses.py", "normalize.py", "networks.py"]
    files += ["policies/shac.py", "envs/pendulum_bank.py"]
    for name in files:
        lines = (package / name).read_text().splitlines()
        for word in (".item(", ".numpy(", ".tolist(", ".cpu("):
            found = [line for line in lines if word in line and '"angle"][0].tolist' not in line]
            assert found == [], f"{name}: {found}"
