"""GumbelREPPO's update rule: what it learns from, towards what, and through what."""

import dataclasses
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from device_reads import DeviceReads
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_envs import Tiny
from torch import Tensor

from rl_gumbel import ESTIMATORS, GumbelREPPO
from rl_gumbel.algorithms.objective import ACTOR_GRADIENTS
from rl_gumbel.algorithms.reppo import REPPOSamples
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.envs.base import BatchedEnv
from rl_gumbel.envs.cartpole import CartPole
from rl_gumbel.envs.taxi import Taxi
from rl_gumbel.losses import joint_one_hots
from rl_gumbel.networks import CRITICS
from rl_gumbel.rollout import collect
from rl_gumbel.vec_env import as_batched

SPACES = {
    "discrete": spaces.Discrete(3, start=5),
    "multi_discrete": spaces.MultiDiscrete([3, 2], start=[-1, 4]),
    "multi_binary": spaces.MultiBinary(3),
}
FACTORED = SPACES["multi_discrete"]
EVERY_SPACE = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
EVERY_CRITIC = pytest.mark.parametrize("critic", list(CRITICS))
EVERY_GRADIENT = pytest.mark.parametrize("actor_gradient", ACTOR_GRADIENTS)


def build(env: Any = FACTORED, **kwargs: Any) -> GumbelREPPO:
    """A small model whose logger keeps everything; a space stands for four tiny environments."""
    settings = {
        "n_steps": 8,
        "n_epochs": 2,
        "num_minibatches": 2,
        "cosine_interval": 0,
        "seed": 0,
        "device": "cpu",
    }
    if isinstance(env, spaces.Space):
        space = env
        env = DummyVecEnv([lambda: Tiny(space)] * 4)
    policy_kwargs = {"net_arch": [16], **kwargs.pop("policy_kwargs", {})}
    model = GumbelREPPO("MlpPolicy", env, policy_kwargs=policy_kwargs, **(settings | kwargs))
    model.set_logger(configure(None, []))
    return model


def filled(env: Any = FACTORED, **kwargs: Any) -> GumbelREPPO:
    """The same with a rollout, before the first update."""
    model = build(env, **kwargs)
    batched = as_batched(model.env, model.device)
    collected = collect(batched, model.policy.act, batched.reset(seed=0), model.n_steps)
    model.rollout, _ = collected
    return model


def a_batch(model: GumbelREPPO) -> REPPOSamples:
    return model.prepare()[0]


def vector(module: torch.nn.Module) -> Tensor:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def logged(model: GumbelREPPO) -> dict[str, Any]:
    return model.logger.name_to_value


def set_logits(model: GumbelREPPO, flat: list[float]) -> None:
    """Make the policy the same for every observation."""
    last = model.policy.actor.network.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor(flat))


# --- it runs ----------------------------------------------------------------------------------


@EVERY_SPACE
@EVERY_CRITIC
@EVERY_GRADIENT
def test_every_space_critic_and_gradient_trains(space, critic, actor_gradient):
    model = build(space, critic=critic, actor_gradient=actor_gradient)
    actor, network = vector(model.policy.actor), vector(model.policy.critic)
    model.learn(64)
    assert model.num_timesteps == 64
    assert model._n_updates == 2 * 2 * 2
    assert not torch.equal(vector(model.policy.actor), actor)
    assert not torch.equal(vector(model.policy.critic), network)
    assert all(torch.as_tensor(value).isfinite().all() for value in logged(model).values())


@pytest.mark.parametrize("critic", ["concat", "multilinear"])
def test_a_critic_with_bins_trains(critic):
    model = build(SPACES["discrete"], critic=critic, num_bins=11, value_range=(-1.0, 8.0))
    network = vector(model.policy.critic)
    model.learn(64)
    assert not torch.equal(vector(model.policy.critic), network)
    # Cross-entropy to a histogram that is no spike: at least about its own entropy.
    assert 0.9 < logged(model)["train/critic_loss"] < 20
    assert logged(model)["train/target_outside"] == 0


def test_targets_beyond_the_bins_are_counted():
    """Rewards are not negative, so no value as low as this range's is right."""
    model = filled(SPACES["discrete"], num_bins=11, value_range=(-2.0, -1.0))
    _, metrics = model.prepare()
    assert metrics[0]["train/target_outside"] == 1


# --- what the critic regresses on -------------------------------------------------------------


class Counting(gym.Env):
    """Observes the step; reward 1; truncated after `limit`, terminated by the last action."""

    observation_space = spaces.Box(0, 100, (1,), np.float32)
    action_space = spaces.Discrete(5)
    limit = 6

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        terminated = action == 4
        truncated = self.steps == self.limit and not terminated
        return np.full(1, self.steps, np.float32), 1.0 + action, terminated, truncated, {}


@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
def test_targets_are_those_of_a_plain_loop(ent_coef):
    """Environment by environment and step by step, with numbers read from the networks.

    The multilinear critic of one factor needs no sample: its value is the expectation.
    """
    env = DummyVecEnv([Counting] * 5)
    model = filled(
        env, n_steps=16, critic="multilinear", ent_coef=ent_coef, gamma=0.9, gae_lambda=0.7,
        reward_scale=0.5,
    )  # fmt: skip
    rollout, policy = model.rollout, model.policy
    assert rollout.terminated.any() and rollout.truncated.any()

    def after(time: int, row: int) -> tuple[float, float]:
        """Value and bonus of what the step led to."""
        seen = rollout.obs[time + 1, row]
        if rollout.truncated[time, row]:
            seen = torch.tensor([float(Counting.limit)])
        with torch.no_grad():
            distribution = policy.actor(seen[None])
            values = policy.critic(seen[None].expand(5, -1), torch.eye(5).unsqueeze(1))[0]
        probs = distribution.probs[0, 0]
        return float(probs @ values), ent_coef * float(-(probs * probs.log()).sum())

    target = a_batch(model).target.unflatten(0, (16, 5))
    for row in range(5):
        following = 0.0
        for time in reversed(range(16)):
            value, bonus = after(time, row)
            decay = 0.0 if time == 15 or rollout.truncated[time, row] else 0.7
            future = bonus + (1 - decay) * value + decay * following
            future = 0.0 if rollout.terminated[time, row] else future
            following = 0.5 * float(rollout.reward[time, row]) + 0.9 * future
            assert target[time, row].item() == pytest.approx(following, rel=1e-4)


def test_samples_are_the_steps_of_the_rollout_in_order():
    model = filled()
    samples, rollout = a_batch(model), model.rollout
    assert len(samples) == 32
    for time, row in ((0, 0), (3, 2), (7, 3)):
        position = time * 4 + row
        torch.testing.assert_close(samples.obs[position], rollout.obs[time, row])
        torch.testing.assert_close(samples.index[position], rollout.index[time, row])
        expected = model.policy.actor(rollout.obs[time, row][None]).log_probs[0]
        torch.testing.assert_close(samples.logits[position], expected)


def test_minibatches_are_of_one_size_and_overlap_nowhere():
    """32 samples in 5 minibatches: 6 each, two left out, others each time."""
    model = filled(num_minibatches=5)
    samples = a_batch(model)
    unique = REPPOSamples(samples.obs, None, samples.index, samples.logits, torch.arange(32))
    batches = [batch.target for batch in model.minibatches(unique)]
    assert [len(batch) for batch in batches] == [6] * 5
    assert len(torch.cat(batches).unique()) == 30
    again = torch.cat([batch.target for batch in model.minibatches(unique)])
    assert not torch.equal(torch.cat(batches), again)


def test_the_critic_regresses_on_its_targets():
    """Many steps on one rollout: the squared error falls to a small part of what it was."""
    model = filled(learning_rate=1e-2, max_grad_norm=None)
    samples = a_batch(model)
    errors = [model.update_critic(samples)["train/critic_loss"] for _ in range(300)]
    assert errors[-1] < 0.1 * errors[0]


# --- through what the actor learns ------------------------------------------------------------


def actor_gradient_of(model: GumbelREPPO, batch: REPPOSamples) -> list[Tensor]:
    zero = torch.zeros(1)
    loss, _, _ = model.actor_loss(batch, 1.0, zero, zero)
    return list(torch.autograd.grad(loss, list(model.policy.actor.parameters())))


@EVERY_SPACE
@EVERY_CRITIC
def test_the_exact_gradient_is_the_enumerated_one(space, critic):
    """-d/dtheta E[Q], the sum over joint actions written out."""
    model = filled(space, critic=critic, actor_gradient="exact", policy_kwargs={"n_critics": 1})
    batch = a_batch(model)
    policy = model.policy.actor(batch.obs)
    total = torch.zeros(())
    for joint in joint_one_hots(model.layout, torch.device("cpu")):
        one_hot = joint.expand(len(batch), -1, -1)
        with torch.no_grad():
            value = model.policy.critic(batch.obs, one_hot)[0]
        total = total - (policy.log_prob(one_hot).exp() * value).mean()
    expected = torch.autograd.grad(total, list(model.policy.actor.parameters()))
    torch.testing.assert_close(actor_gradient_of(model, batch), list(expected))


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_every_estimator_moves_the_actor_through_the_action_alone(estimator):
    model = filled(estimator=estimator)
    batch = a_batch(model)
    assert sum(part.abs().sum() for part in actor_gradient_of(model, batch)) > 0
    with torch.no_grad():  # a critic that does not look at the action
        first = model.policy.critic.network.tail[0]
        first.weight[:, -model.layout.num_flat :] = 0
    assert sum(part.abs().sum() for part in actor_gradient_of(model, batch)) == 0


def test_the_entropy_bonus_has_the_exact_gradient():
    """A critic of zeros: what is left is -alpha H, by automatic differentiation of the formula."""
    model = filled(actor_gradient="exact")
    with torch.no_grad():
        for parameter in model.policy.critic.parameters():
            parameter.zero_()
    batch = a_batch(model)
    loss, _, _ = model.actor_loss(batch, 1.0, torch.tensor([0.3]), torch.zeros(1))
    log_probs = model.policy.actor(batch.obs).log_probs
    expected = 0.3 * (log_probs.exp() * log_probs).sum((-2, -1)).mean()
    torch.testing.assert_close(loss, expected)


def test_beyond_the_bound_the_actor_goes_back_to_the_old_policy():
    """One row's old policy is far off, and its divergence is all that has a gradient."""
    model = filled(SPACES["discrete"], actor_gradient="exact", kl_bound=0.5)
    set_logits(model, [0.0, 0.0, 0.0])
    batch = a_batch(model)
    far = torch.tensor([0.98, 0.01, 0.01]).log()
    logits = batch.logits.clone()
    logits[3, 0] = far
    batch = REPPOSamples(batch.obs, None, batch.index, logits, batch.target)
    loss, _, kl = model.actor_loss(batch, 1.0, torch.zeros(1), torch.tensor([2.0]))
    divergence = (far.exp() * (far - math.log(1 / 3))).sum()
    expected = torch.zeros(len(batch))
    expected[3] = divergence
    torch.testing.assert_close(kl, expected)
    with torch.no_grad():
        policy = model.policy.actor(batch.obs)
        values = model.objective.value(policy, model.policy.critic, batch.obs, 1.0)
    rows = -values
    rows[3] = 2 * divergence
    torch.testing.assert_close(loss, rows.mean())


def test_the_first_minibatch_finds_the_old_policy_unchanged():
    model = filled()
    batch = a_batch(model)
    _, _, kl = model.actor_loss(batch, 1.0, torch.zeros(1), torch.zeros(1))
    torch.testing.assert_close(kl, torch.zeros_like(kl), rtol=0, atol=1e-6)


def test_the_actors_step_leaves_the_critic_alone():
    model = filled()
    critic = vector(model.policy.critic)
    model.update_actor(a_batch(model), 1.0)
    assert torch.equal(vector(model.policy.critic), critic)
    assert all(p.grad is None for p in model.policy.critic.parameters())


# --- multipliers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entropy", "kl", "ent_sign", "kl_sign"),
    [(0.1, 0.05, 1, -1), (0.9, 0.5, -1, 1)],
    ids=["little entropy, small divergence", "much of both"],
)
def test_multipliers_move_against_their_violations(entropy, kl, ent_sign, kl_sign):
    model = build(SPACES["discrete"], target_entropy=0.5, kl_bound=0.1)
    before = torch.cat([model.log_ent_coef, model.log_kl_coef]).detach()
    model.update_multipliers(
        torch.full((4,), entropy), torch.full((4,), kl), None, torch.tensor(True)
    )
    after = torch.cat([model.log_ent_coef, model.log_kl_coef]).detach()
    assert (after - before).sign().tolist() == [ent_sign, kl_sign]


def test_multipliers_start_where_they_are_told():
    model = build(ent_coef="auto_0.2", kl_coef="auto")
    torch.testing.assert_close(model.log_ent_coef.exp().item(), 0.2)
    assert model.log_kl_coef.item() == 0


def test_fixed_coefficients_stay():
    model = build(ent_coef=0.0, kl_coef=0.5)
    assert model.multiplier_optimizer is None
    model.learn(64)
    assert logged(model)["train/ent_coef"] == 0
    assert logged(model)["train/kl_coef"] == 0.5


@EVERY_SPACE
def test_the_entropy_target_is_a_fraction_of_the_maximum(space):
    model = build(space, target_entropy_fraction=0.25)
    sizes = model.layout.sizes
    assert model._entropy_target == pytest.approx(0.25 * sum(math.log(n) for n in sizes))


# --- masks ------------------------------------------------------------------------------------


def test_only_legal_actions_are_taken_and_trained():
    model = filled(Taxi(16), n_steps=20, critic="multilinear")
    rollout = model.rollout
    chosen = model.layout.index_to_one_hot(rollout.index).bool()
    assert (chosen & rollout.action_mask[:-1]).sum() == chosen.sum()
    batch = a_batch(model)
    assert torch.equal(batch.mask, rollout.action_mask[:-1].flatten(0, 1))
    policy = model.policy.actor(batch.obs, batch.mask)
    assert (policy.probs[~batch.mask] == 0).all()
    loss, entropy, kl = model.actor_loss(batch, 1.0, torch.ones(1), torch.ones(1))
    assert loss.isfinite() and (kl < 1e-5).all()
    assert (entropy.squeeze(-1) <= batch.mask.sum((-2, -1)).log() + 1e-5).all()
    gradient = torch.autograd.grad(loss, model.policy.actor.network.layers[-1].bias)[0]
    never = ~batch.mask.flatten(0, 1).any(0)
    assert gradient.isfinite().all() and (gradient[never] == 0).all()


def random_mask(model: GumbelREPPO, num_rows: int) -> Tensor:
    """The first category of each factor, of the others some, the padding never."""
    mask = torch.rand(num_rows, *model.layout.valid.shape) < 0.5
    mask[:, :, 0] = True
    return mask & model.layout.valid


def test_entropy_is_logged_as_a_fraction_of_the_allowed_maximum():
    """The uniform policy over what may be chosen has all of it, whatever the mask."""
    model = filled()
    batch = a_batch(model)
    set_logits(model, [0.0] * model.layout.num_flat)
    batch = dataclasses.replace(batch, mask=random_mask(model, len(batch)))
    metrics = model.update_actor(batch, 1.0)
    assert metrics["estimator/entropy"].item() == pytest.approx(1)
    torch.testing.assert_close(metrics["estimator/entropy_per_factor"], torch.ones(2))


def test_one_allowed_action_has_no_entropy_to_have():
    model = filled()
    batch = a_batch(model)
    only = torch.zeros(len(batch), 2, 3, dtype=torch.bool)
    only[:, :, 0] = True
    metrics = model.update_actor(dataclasses.replace(batch, mask=only), 1.0)
    assert metrics["estimator/entropy"] == 0
    assert (metrics["estimator/entropy_per_factor"] == 0).all()
    assert model.log_ent_coef.grad.item() == 0  # nor to aim at


def test_the_entropy_target_is_lower_where_a_mask_leaves_less():
    """The gradient of the multiplier's loss by hand: alpha times the mean surplus over targets."""
    model = filled(target_entropy_fraction=0.4, ent_coef="auto_0.5")
    mask, entropy = random_mask(model, 32), torch.rand(32)
    most = [sum(math.log(int(factor.sum())) for factor in row) for row in mask]
    assert len(set(most)) > 2
    expected = 0.5 * (entropy.mean().item() - 0.4 * sum(most) / 32)
    model.update_multipliers(entropy, torch.zeros(32), mask, torch.tensor(True))
    assert model.log_ent_coef.grad.item() == pytest.approx(expected, rel=1e-5)


# --- observations -----------------------------------------------------------------------------


def test_observations_are_normalised_by_the_statistics_of_earlier_rollouts():
    model = filled(CartPole(16), normalize_observations=True, n_steps=32)
    raw = model.rollout.obs
    torch.testing.assert_close(a_batch(model).obs, raw[:-1].flatten(0, 1))  # none yet
    model.update(1.0)
    mean, std = raw[1:].mean((0, 1)), raw[1:].flatten(0, 1).std(0, correction=0)
    expected = (raw[:-1].flatten(0, 1) - mean) / std
    torch.testing.assert_close(a_batch(model).obs, expected.clamp(-10, 10), rtol=1e-3, atol=1e-4)
    index = model.policy.distribution(raw[0]).mode
    again = model.policy.actor((raw[0] - mean) / std).mode
    assert torch.equal(index, again)


# --- cosine -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "is_one"),
    [
        ({"estimator": "straight_through", "critic": "multilinear"}, True),
        ({"actor_gradient": "local_expectation"}, True),
        ({"estimator": "straight_through_gumbel"}, False),
    ],
    ids=["straight-through, linear", "local expectation", "straight-through Gumbel"],
)
def test_the_cosine_of_an_exact_gradient_is_one(kwargs, is_one):
    """Of one factor; of a noisy, biased one it is not."""
    model = filled(SPACES["discrete"], **kwargs)
    cosine = model.probe_estimator(a_batch(model), 1.0)["estimator/cosine"].item()
    assert (cosine > 0.9999) == is_one
    assert -1 <= cosine <= 1 + 1e-5


def test_the_cosine_is_measured_at_its_interval():
    """Eight updates, the first and the fifth are probed."""
    model = filled(cosine_interval=4, n_epochs=4)
    metrics = model.update(1.0)
    assert sum("estimator/cosine" in row for row in metrics) == 2


# --- on the device ----------------------------------------------------------------------------


def iterate(model: GumbelREPPO, env: BatchedEnv, obs: Tensor) -> Tensor:
    """Collect and update, everything but the log."""
    model.rollout, obs = collect(env, model.policy.act, obs, model.n_steps)
    model.update(1.0)
    return obs


SETTINGS = {
    "defaults": {},
    "bins": {"num_bins": 11},
    "multilinear": {"critic": "multilinear", "estimator": "straight_through"},
    "exact": {"actor_gradient": "exact"},
    "local expectation": {"actor_gradient": "local_expectation"},
}
EVERY_SETTING = pytest.mark.parametrize("kwargs", SETTINGS.values(), ids=SETTINGS)
EVERY_ENV = pytest.mark.parametrize("env_class", [CartPole, Taxi])


@EVERY_ENV
@EVERY_SETTING
def test_an_iteration_never_waits_for_the_device(env_class, kwargs):
    """A read inside would stop a GPU at every step."""
    env = env_class(4, max_episode_steps=3)
    is_box = env_class is CartPole
    model = build(env, cosine_interval=1, normalize_observations=is_box, **kwargs)
    obs = iterate(model, env, env.reset(seed=0))  # what is made once may be made here
    with DeviceReads() as reads:
        iterate(model, env, obs)
    assert reads.seen == []


@EVERY_ENV
@EVERY_SETTING
def test_an_iteration_runs_on_the_meta_device(env_class, kwargs):
    """Where there are no values, reading one raises, and so does mixing devices."""
    env = env_class(4, max_episode_steps=3, device="meta")
    is_box = env_class is CartPole
    model = build(
        env,
        device="meta",
        cosine_interval=1,
        normalize_observations=is_box,
        policy_kwargs={"optimizer_kwargs": {}},
        **kwargs,
    )
    obs = iterate(model, env, env.reset())
    assert iterate(model, env, obs).device.type == "meta"
    assert model._n_updates == 8


# --- torch.compile ----------------------------------------------------------------------------


def test_a_compiler_that_fails_is_named_and_training_goes_on(monkeypatch):
    def broken(function: Any, **kwargs: Any) -> Any:
        def call(*args: Any) -> Any:
            raise RuntimeError("no C++ compiler here")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    model = build(compile=True)
    with pytest.warns(RuntimeWarning) as caught:
        model.learn(32)
    reason = "RuntimeError: no C++ compiler here"
    assert {str(warning.message) for warning in caught} >= {
        f"compile=True has no effect on {name}: {reason}" for name in ("critic_loss", "actor_loss")
    }
    assert model._n_updates == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, when the compiler is imported
def test_compiled_losses_have_the_gradients_of_the_plain_ones():
    model = filled(CartPole(4), critic="multilinear", actor_gradient="exact", num_bins=11)
    batch, zero = a_batch(model), torch.zeros(1)
    parameters = list(model.policy.parameters())
    gradients = []
    for compile in (False, True):
        model.compile = compile
        model._setup_losses()
        loss = model._critic_loss(batch) + model._actor_loss(batch, 1.0, zero + 0.1, zero)[0]
        gradients.append(torch.autograd.grad(loss, parameters))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, when the compiler is imported
def test_a_temperature_that_moves_does_not_compile_again():
    """Each of these would be a new number."""
    model = filled(compile=True)
    batch = a_batch(model)
    for _ in range(2):  # the first call runs as it is, the second one compiles
        model.update_actor(batch, 2.0)
    with torch.compiler.set_stance("fail_on_recompile"):
        for number in range(4):
            model.update_actor(batch, 1.9 - number / 10)


def test_samples_of_a_dict_are_taken_part_by_part():
    obs = {"x": torch.arange(4.0), "n": torch.arange(4)}
    index = torch.arange(4)[:, None]
    samples = REPPOSamples(obs, None, index, torch.zeros(4, 1, 2), torch.arange(4.0))
    taken = samples.take(torch.tensor([2, 0]))
    assert taken.obs["x"].tolist() == [2, 0] and taken.obs["n"].tolist() == [2, 0]
    assert taken.index.tolist() == [[2], [0]] and taken.target.tolist() == [2, 0]


def test_an_old_policy_is_itself_again_from_its_log_probabilities():
    """`logits` of samples are normalised ones; masked or padded entries stay without weight."""
    logits = torch.randn(5, 2, 3)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    policy = FactoredCategorical(logits, mask)
    again = FactoredCategorical(policy.log_probs, mask, validate=False)
    torch.testing.assert_close(again.probs, policy.probs)
    assert policy.kl(again).abs().max() < 1e-6
