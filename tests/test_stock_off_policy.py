"""Unmodified SAC, TD3 and DDPG train on one-hot actions, and what would spoil them is refused."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_envs import Tiny, TinyDict
from torch import Tensor

from rl_gumbel import (
    GumbelSAC,
    GumbelSACPolicy,
    GumbelTD3Policy,
    OneHotActions,
    check_stock,
    estimators,
    stock_kwargs,
)
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.estimators import ESTIMATORS
from rl_gumbel.policies.one_hot import OneHotActor

FACTORED = spaces.MultiDiscrete([3, 2], start=[-1, 4])
POLICIES = {SAC: GumbelSACPolicy, TD3: GumbelTD3Policy, DDPG: GumbelTD3Policy}
ALGORITHMS = pytest.mark.parametrize("algorithm", list(POLICIES), ids=lambda a: a.__name__)


def factored_env() -> OneHotActions:
    return OneHotActions(Tiny(FACTORED))


def cartpole() -> OneHotActions:
    return OneHotActions(gym.make("CartPole-v1"))


ENVS = pytest.mark.parametrize("make_env", [cartpole, factored_env])


def build(algorithm: Any, env: Any, policy_kwargs: Any = None, **options: Any) -> Any:
    """A small model, set up as `stock_kwargs` says unless the options say otherwise."""
    small = {"learning_starts": 40, "buffer_size": 400, "batch_size": 16, "seed": 0}
    policy_kwargs = {"net_arch": [16], **(policy_kwargs or {})}
    kwargs = stock_kwargs(env, algorithm, policy_kwargs=policy_kwargs, **small)
    return algorithm(POLICIES[algorithm], env, **(kwargs | options))


def stored_actions(model: Any) -> np.ndarray:
    buffer = model.replay_buffer
    return buffer.actions[: buffer.size()].reshape(-1, buffer.action_dim)


def is_one_hot(actions: np.ndarray, sizes: tuple[int, ...]) -> bool:
    """Written with slices, not with the layout that it tests."""
    ends = np.cumsum(sizes)
    factors = [actions[:, end - size : end] for size, end in zip(sizes, ends, strict=True)]
    return all(((f == 0) | (f == 1)).all() and (f.sum(1) == 1).all() for f in factors)


def actor_parameters(model: Any) -> Tensor:
    return torch.nn.utils.parameters_to_vector(model.actor.parameters()).detach().clone()


def observations(model: Any, count: int = 30) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, *model.observation_space.shape))


@ALGORITHMS
@ENVS
def test_stock_algorithm_trains_saves_and_loads(algorithm, make_env, tmp_path):
    """The promise of the drop-in classes, in one run of each stock algorithm."""
    model = build(algorithm, make_env())
    check_stock(model)
    before = actor_parameters(model)
    model.learn(150)
    assert stored_actions(model).shape[0] == 150
    assert is_one_hot(stored_actions(model), model.action_space.layout.sizes)
    assert not torch.equal(actor_parameters(model), before)

    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", env=make_env())
    check_stock(loaded)
    obs = observations(model)
    expected, _ = model.predict(obs, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)
    assert is_one_hot(expected, model.action_space.layout.sizes)
    loaded.learn(60, reset_num_timesteps=False)


@ALGORITHMS
@ENVS
def test_actor_moves_by_the_gradient_through_the_action_alone(algorithm, make_env, monkeypatch):
    """Without entropy bonus; the control, a detached action, must leave the actor where it was."""
    options = {"ent_coef": 0.0} if algorithm is SAC else {}
    model = build(algorithm, make_env(), **options)
    before = actor_parameters(model)
    model.learn(60)
    assert not torch.equal(actor_parameters(model), before)

    act = OneHotActor._act
    monkeypatch.setattr(OneHotActor, "_act", lambda *args: act(*args).detach())
    control = build(algorithm, make_env(), **options)
    assert torch.equal(actor_parameters(control), before)
    control.learn(60)
    assert torch.equal(actor_parameters(control), before)


@ALGORITHMS
def test_parallel_environments_train(algorithm):
    model = build(algorithm, DummyVecEnv([factored_env, factored_env]))
    model.learn(100)
    assert is_one_hot(stored_actions(model), FACTORED.nvec)


@pytest.mark.parametrize("algorithm", [SAC, TD3], ids=lambda a: a.__name__)
@pytest.mark.parametrize("critic", ["concat", "multilinear"])
@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_every_estimator_and_critic_trains_on_one_hots(algorithm, estimator, critic):
    """The relaxed estimators too: only the action of the actor's loss is soft."""
    kwargs = {"estimator": estimator, "critic": critic}
    model = build(algorithm, factored_env(), kwargs, learning_starts=10)
    before = actor_parameters(model)
    model.learn(20)
    assert is_one_hot(stored_actions(model), FACTORED.nvec)
    assert not torch.equal(actor_parameters(model), before)


@pytest.mark.parametrize("algorithm", [SAC, TD3], ids=lambda a: a.__name__)
def test_shared_features_and_dict_observations_train(algorithm):
    kwargs = {"features_extractor_class": CombinedExtractor, "share_features_extractor": True}
    model = build(algorithm, OneHotActions(TinyDict(FACTORED)), kwargs)
    model.learn(60)
    assert is_one_hot(stored_actions(model), FACTORED.nvec)


def test_stock_sac_takes_the_steps_of_gumbel_sac(monkeypatch):
    """Two implementations of one algorithm, given the same weights, rows and Gumbel noise."""

    def fixed_noise(shape: Any, device: Any, generator: Any = None) -> Tensor:
        return -torch.empty(shape).exponential_(generator=torch.Generator().manual_seed(0)).log()

    def sample(self: FactoredCategorical, generator: Any = None) -> Tensor:
        noise = fixed_noise(self.log_probs.shape, self.log_probs.device)
        return (self.log_probs + noise).argmax(-1)

    # The same draws where one of them samples by inversion.
    monkeypatch.setattr(FactoredCategorical, "sample", sample)
    monkeypatch.setattr(estimators, "sample_gumbel", fixed_noise)
    same = {"learning_rate": 1e-3, "tau": 0.01, "ent_coef": "auto_0.1"}
    stock = build(SAC, factored_env(), **same)
    native = GumbelSAC(
        "MlpPolicy", Tiny(FACTORED), cosine_interval=0, policy_kwargs={"net_arch": [16]}, **same
    )
    native.policy.load_state_dict(stock.policy.state_dict())
    rng = np.random.default_rng(0)
    for _ in range(50):
        obs, next_obs = rng.normal(size=(2, 1, 3))
        action = native.action_space.sample()[None]
        one_hot = native.layout.flatten(native.layout.to_one_hot(action)).numpy()
        rest = (rng.normal(size=1), rng.random(1) < 0.1, [{}])
        native.replay_buffer.add(obs, next_obs, action, *rest)
        stock.replay_buffer.add(obs, next_obs, one_hot, *rest)
    before = actor_parameters(stock)
    for model in (stock, native):
        model.set_logger(configure(None, []))
        np.random.seed(0)  # SB3 draws the rows from it
        model.train(5, 16)
    torch.testing.assert_close(stock.policy.state_dict(), native.policy.state_dict())
    torch.testing.assert_close(stock.log_ent_coef, native.log_ent_coef)
    assert not torch.equal(actor_parameters(stock), before)


# --- the conditions of stock SB3, each broken once -------------------------------------------


def test_actions_stay_in_zero_and_one():
    """Condition 1: SB3 scales a Box to [-1, 1] on the way to the buffer, and back."""
    model = build(SAC, factored_env())
    one_hot = np.array([[0, 1, 0, 0, 1]], np.float32)
    np.testing.assert_array_equal(model.policy.scale_action(one_hot), one_hot)
    np.testing.assert_array_equal(model.policy.unscale_action(one_hot), one_hot)


def test_a_policy_of_sb3_is_refused():
    """Condition 1: SB3's own policy acts outside {0, 1}."""
    model = SAC("MlpPolicy", factored_env(), buffer_size=10)
    with pytest.raises(ValueError, match="pass GumbelSACPolicy to SAC"):
        check_stock(model)


@pytest.mark.parametrize("policy", [GumbelSACPolicy, GumbelTD3Policy])
def test_a_plain_box_is_refused(policy):
    """Condition 2: `Box.sample` would fill the warm-up with vectors that are not one-hot."""
    with pytest.raises(TypeError, match="OneHotActions"):
        policy(Tiny.observation_space, spaces.Box(0, 1, (5,)), lambda _: 1e-3)


@ALGORITHMS
def test_warm_up_is_uniform_one_hots(algorithm):
    """Condition 2; each category within 4 sigma of its share."""
    model = build(algorithm, factored_env(), learning_starts=400)
    model.learn(400)
    actions = stored_actions(model)
    assert is_one_hot(actions, FACTORED.nvec)
    probability = np.array([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2])
    spread = np.sqrt(400 * probability * (1 - probability))
    assert (np.abs(actions.sum(0) - 400 * probability) < 4 * spread).all()


def test_default_target_entropy_is_refused():
    """Condition 3: SB3's default is -5 here, below every entropy; the cure is log(6) / 2."""
    model = build(SAC, factored_env(), target_entropy="auto")
    assert model.target_entropy == -5
    with pytest.raises(ValueError, match=r"pass target_entropy=0\.896"):
        check_stock(model)
    check_stock(build(SAC, factored_env(), target_entropy="auto", ent_coef=0.1))


def test_stock_target_entropy_is_a_fraction_of_the_maximum():
    """Condition 3: log(3 * 2) nats is the maximum."""
    kwargs = stock_kwargs(factored_env(), SAC, target_entropy_fraction=0.25)
    assert kwargs["target_entropy"] == pytest.approx(0.25 * np.log(6))


def test_log_probability_has_the_gradient_of_the_exact_entropy():
    """Condition 4: that of a hard sample would have none. Oracle: torch's Categorical."""
    actor = build(SAC, cartpole()).policy.actor
    obs = torch.randn(64, 4)
    _, log_prob = actor.action_log_prob(obs)
    logits = actor.distribution(obs).logits.squeeze(1)
    oracle = -torch.distributions.Categorical(logits=logits).entropy()
    parameters = list(actor.parameters())
    gradients = torch.autograd.grad(log_prob.mean(), parameters)
    expected = torch.autograd.grad(oracle.mean(), parameters)
    torch.testing.assert_close(log_prob, oracle)
    torch.testing.assert_close(gradients, expected)
    assert any(bool((gradient != 0).any()) for gradient in gradients)


@ALGORITHMS
def test_action_noise_is_refused(algorithm):
    """Condition 5: by the check, and by the wrapper at the first step where nobody checked."""
    noise = NormalActionNoise(np.zeros(5), np.full(5, 0.1))
    model = build(algorithm, factored_env(), action_noise=noise)
    with pytest.raises(ValueError, match="pass action_noise=None"):
        check_stock(model)
    with pytest.raises(ValueError, match=r"not a one-hot vector.*pass action_noise=None"):
        model.learn(1)


@ALGORITHMS
def test_critic_refuses_stored_actions_that_are_not_one_hot(algorithm):
    """Condition 5, for a buffer that was filled elsewhere: the critic must not learn from it."""
    model = build(algorithm, factored_env())
    model.learn(40)
    model.replay_buffer.actions[:] += 0.1
    with pytest.raises(ValueError, match=r"in row 0 is not one-hot.*pass action_noise=None"):
        model.train(1, 16)


def test_target_noise_of_td3_is_refused():
    """Condition 6: by the check, and by the target critic; either of the two settings cures it."""
    model = build(TD3, factored_env(), target_noise_clip=0.5)
    with pytest.raises(ValueError, match=r"pass target_noise_clip=0\.0"):
        check_stock(model)
    with pytest.raises(ValueError, match="target_noise_clip"):
        model.learn(60)
    check_stock(build(TD3, factored_env(), target_noise_clip=0.5, target_policy_noise=0.0))


@ALGORITHMS
def test_deterministic_is_the_mode_and_stochastic_is_not(algorithm):
    """Condition 7: SB3's TD3 policy ignores it; an untrained policy is near uniform."""
    model = build(algorithm, factored_env())
    obs = np.repeat(observations(model, 1), 200, 0)
    deterministic, _ = model.predict(obs, deterministic=True)
    stochastic, _ = model.predict(obs)
    assert len(np.unique(deterministic, axis=0)) == 1
    assert len(np.unique(stochastic, axis=0)) > 1
    mode = model.actor.distribution(torch.as_tensor(obs[:1]).float()).mode
    one_hot = model.actor.layout.flatten(model.actor.layout.index_to_one_hot(mode))
    np.testing.assert_array_equal(deterministic[:1], one_hot.numpy())


def test_one_hot_predictions_obey_a_mask():
    model = build(SAC, factored_env())
    layout = model.policy.layout
    allowed = np.zeros((50, layout.num_flat), bool)
    allowed[:, [0, layout.sizes[0]]] = True  # the first category of each factor alone
    actions, _ = model.policy.predict(
        observations(model, 1).repeat(50, 0), action_masks=np.ones_like(allowed)
    )
    assert not (actions <= allowed).all()
    actions, _ = model.policy.predict(observations(model, 1).repeat(50, 0), action_masks=allowed)
    np.testing.assert_array_equal(actions, allowed)


def test_temperature_is_no_state_that_a_target_could_miss():
    """Condition 8: SB3 averages parameters only. The target actor draws hard one-hots instead."""
    model = build(TD3, factored_env(), {"estimator": "gumbel_softmax", "temperature": 0.7})
    names = [name for name, _ in [*model.policy.named_parameters(), *model.policy.named_buffers()]]
    assert not any("temperature" in name for name in names)
    model.policy.estimation.temperature = 5.0
    obs = torch.randn(50, 3)
    soft = model.actor(obs).detach().numpy()
    assert not is_one_hot(soft, FACTORED.nvec)
    with torch.no_grad():
        assert is_one_hot(model.actor_target(obs).numpy(), FACTORED.nvec)


def test_target_actor_starts_as_a_copy_and_follows():
    """SB3 moves it by `tau` at every update of the actor; here all the way."""
    model = build(TD3, factored_env(), tau=1.0)
    target = torch.nn.utils.parameters_to_vector(model.policy.actor_target.parameters())
    torch.testing.assert_close(target, actor_parameters(model))
    before = target.detach().clone()
    model.learn(60)
    target = torch.nn.utils.parameters_to_vector(model.policy.actor_target.parameters())
    torch.testing.assert_close(target, actor_parameters(model))
    assert not torch.equal(target, before)


def test_shared_policy_kwargs_serve_every_algorithm():
    """Condition 9: SAC and DDPG write into the caller's dict, which crashed the next algorithm."""
    shared = {"net_arch": [8]}
    small = {"buffer_size": 10}
    for algorithm in (SAC, TD3, DDPG):
        algorithm(POLICIES[algorithm], factored_env(), policy_kwargs=shared, **small)
    assert shared == {"net_arch": [8], "use_sde": False, "n_critics": 1}


@ALGORITHMS
def test_stock_kwargs_keep_sb3_out_of_the_callers_dict(algorithm):
    """Condition 9: DDPG's single critic would follow the dict into the next algorithm."""
    shared = {"net_arch": [8]}
    env = factored_env()
    algorithm(POLICIES[algorithm], env, **stock_kwargs(env, algorithm, policy_kwargs=shared))
    assert shared == {"net_arch": [8]}


def test_use_sde_is_refused():
    with pytest.raises(ValueError, match="use_sde=True has no meaning"):
        build(SAC, factored_env(), use_sde=True)


# --- the rest of the contract -----------------------------------------------------------------


def test_critic_takes_soft_actions_of_the_actor_only():
    """A gradient tells an actor's output from a row of the buffer, which has none."""
    critic = build(SAC, factored_env()).critic
    soft = torch.tensor([[0.5, 0.5, 0.0, 0.9, 0.1]])
    obs = torch.zeros(1, 3)
    critic(obs, soft.clone().requires_grad_())
    with pytest.raises(ValueError, match="row 0"):
        critic(obs, soft)


def test_critic_returns_a_tuple_as_sb3_expects():
    critic = build(TD3, factored_env(), {"n_critics": 3}).critic
    action = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]])
    values = critic(torch.zeros(1, 3), action)
    assert isinstance(values, tuple)
    assert [value.shape for value in values] == [(1, 1)] * 3
    torch.testing.assert_close(critic.q1_forward(torch.zeros(1, 3), action), values[0])


@pytest.mark.parametrize("policy", [GumbelSACPolicy, GumbelTD3Policy])
def test_policy_alone_saves_and_loads_its_settings(policy, tmp_path):
    """SB3's `policy.load` knows only what `_get_constructor_parameters` returns."""
    settings = {
        "estimator": "gumbel_rao",
        "temperature": 0.3,
        "estimator_kwargs": {"num_samples": 3},
    }
    kwargs = {"net_arch": [8], "critic": "multilinear", "rank": 2, **settings}
    space = factored_env().action_space
    saved = policy(Tiny.observation_space, space, lambda _: 1e-3, **kwargs)
    saved.save(tmp_path / "policy.pt")
    loaded = policy.load(tmp_path / "policy.pt", device="cpu")
    assert vars(loaded.estimation) == settings
    obs = np.random.default_rng(0).uniform(-1, 1, (30, 3))
    expected, _ = saved.predict(obs, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"estimator": "gumbel"}, "unknown estimator 'gumbel'; known: gumbel_softmax"),
        ({"temperature": 0.0}, "temperature 0.0 .* out of range"),
        ({"estimator_kwargs": {"gap": 1.0}}, "no option 'gap'"),
    ],
    ids=str,
)
def test_settings_of_the_estimator_are_checked_at_construction(kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(SAC, factored_env(), kwargs)


def test_stock_kwargs_refuse_what_they_cannot_help():
    with pytest.raises(TypeError, match="wrapped in OneHotActions"):
        stock_kwargs(Tiny(FACTORED), "SAC")
    with pytest.raises(ValueError, match="unknown algorithm 'DQN'; known: SAC, TD3"):
        stock_kwargs(factored_env(), "DQN")
    with pytest.raises(ValueError, match=r"target_entropy_fraction 1\.5"):
        stock_kwargs(factored_env(), SAC, target_entropy_fraction=1.5)


def test_check_stock_refuses_an_algorithm_that_it_does_not_know():
    model = DQN("MlpPolicy", gym.make("CartPole-v1"), buffer_size=10)
    with pytest.raises(ValueError, match="unknown algorithm 'DQN'"):
        check_stock(model)


def test_stock_kwargs_know_subclasses():
    class MyTD3(TD3):
        pass

    assert stock_kwargs(factored_env(), MyTD3) == stock_kwargs(factored_env(), "TD3")
