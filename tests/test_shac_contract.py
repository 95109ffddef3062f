"""GumbelSHAC as an SB3 algorithm: probes, environments, callbacks, logs, files, refusals."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_envs import Tiny, TinyDict

from rl_gumbel import GumbelSHAC, Schedule, load_model, make_vec, save_model
from rl_gumbel.callbacks import evaluate_model
from rl_gumbel.envs import probes
from rl_gumbel.envs.base import TorchEnv
from rl_gumbel.envs.catch import Catch
from rl_gumbel.envs.pendulum_bank import PendulumBank
from rl_gumbel.envs.taxi import Taxi
from rl_gumbel.logger import TAGS
from rl_gumbel.policies.shac import SHACPolicy
from rl_gumbel.vec_env import SB3VecEnv

FACTORED = spaces.MultiDiscrete([3, 2], start=[-1, 4])
SMALL = {"net_arch": [16]}


def bank() -> PendulumBank:
    return PendulumBank(4, 20, n=2)


def build(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> GumbelSHAC:
    settings = {"n_steps": 8, "ent_coef": 0.1, "policy_kwargs": SMALL, "seed": 0}
    env = bank() if env is None else env
    return GumbelSHAC(policy, env, device="cpu", **(settings | kwargs))


def weights(model: GumbelSHAC) -> dict[str, torch.Tensor]:
    state = {name: value.clone() for name, value in model.policy.state_dict().items()}
    return state | {"ent": model.log_ent_coef.detach().clone()}


def assert_same(left: Any, right: Any) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


# --- probes: agents that reach values known by hand ---------------------------------------------

ALPHA, GAMMA = 0.5, 0.9
MIXTURES = pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])


def trained(
    env: TorchEnv, weight: float, iterations: int, learning_rate: float = 2e-2
) -> GumbelSHAC:
    """Tiny networks; the entropy coefficient is fixed, so that soft values are known by hand."""
    steps = 4
    model = GumbelSHAC(
        "MlpPolicy",
        env,
        learning_rate=Schedule("linear", learning_rate, 1e-3),
        n_steps=steps,
        num_minibatches=2,
        gamma=GAMMA,
        estimator="straight_through",  # unbiased: rewards are linear in a one-hot
        score_function_weight=weight,
        ent_coef=ALPHA,
        policy_kwargs={"net_arch": [32]},
        seed=0,
        device="cpu",
    )
    return model.learn(iterations * steps * env.num_envs)


def values(model: GumbelSHAC, obs: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model.policy.critic(obs).numpy()


@MIXTURES
def test_agents_learn_a_value_from_the_observation(weight):
    model = trained(probes.ProbeObservation(16), weight, 40)
    obs = torch.tensor([[-1.0], [1.0]])
    np.testing.assert_allclose(values(model, obs), [-1, 1], atol=0.05)


@MIXTURES
def test_agents_discount(weight):
    """The first state is worth gamma: the terminal one adds nothing after its reward."""
    model = trained(probes.ProbeDiscount(16), weight, 60)
    obs = torch.tensor([[0.0], [1.0]])
    np.testing.assert_allclose(values(model, obs), [GAMMA, 1], atol=0.05)


@MIXTURES
def test_agents_choose_softly(weight):
    """Action 1 with probability sigmoid(2 / alpha); V = alpha log(e^(-1/alpha) + e^(1/alpha))."""
    model = trained(probes.ProbeAction(32), weight, 100, 1e-2)
    obs = torch.zeros(1, 1)
    probs = model.policy.distribution(obs).probs.detach().flatten()
    assert probs[1].item() == pytest.approx(1 / (1 + math.exp(-2 / ALPHA)), abs=0.01)
    best = ALPHA * math.log(math.exp(-1 / ALPHA) + math.exp(1 / ALPHA))
    np.testing.assert_allclose(values(model, obs), [best], atol=0.05)


@pytest.mark.parametrize(
    ("space", "weight"),
    [
        *((spaces.MultiDiscrete([3, 2]), weight) for weight in (0.0, 0.5, 1.0)),
        (spaces.MultiBinary(3), 0.0),
        (spaces.Discrete(3, start=-1), 0.5),
    ],
    ids=str,
)
def test_agents_give_each_factor_its_credit(space, weight):
    """With e = exp(1 / alpha): V = sum alpha log(e + n - 1), P(right) = e / (e + n - 1)."""
    model = trained(probes.ProbeFactors(64, space), weight, 60)
    sizes = model.layout.sizes
    shown = torch.tensor(list(np.ndindex(*sizes)))
    e = math.exp(1 / ALPHA)
    best = sum(ALPHA * math.log(e + size - 1) for size in sizes)
    np.testing.assert_allclose(values(model, shown), np.full(len(shown), best), atol=0.2)
    distribution = model.policy.distribution(shown)
    right = distribution.probs.gather(-1, shown.unsqueeze(-1)).squeeze(-1).detach().numpy()
    fair = np.array([e / (e + size - 1) for size in sizes])
    np.testing.assert_allclose(right, np.tile(fair, (len(shown), 1)), atol=0.06)
    assert torch.equal(distribution.mode, shown)


# --- environments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env",
    [bank, lambda: SB3VecEnv(bank()), lambda: probes.ProbeFactors(4), lambda: probes.ProbeValue(4)],
    ids=["batched", "SB3VecEnv", "integers", "one category"],
)
def test_every_kind_of_differentiable_environment_trains_and_logs_episodes(env):
    model = build(env(), n_steps=40).learn(160)
    assert model.num_timesteps == 160
    assert len(model.ep_info_buffer) > 0
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())


@pytest.mark.parametrize(
    "env",
    [
        lambda: Taxi(4),
        lambda: DummyVecEnv([lambda: Monitor(Tiny(FACTORED))] * 4),
        lambda: VecNormalize(DummyVecEnv([lambda: Monitor(Tiny(spaces.MultiBinary(3)))] * 4)),
        lambda: Monitor(Tiny(spaces.Discrete(3, start=5))),
        lambda: "CartPole-v1",
    ],
    ids=["batched", "DummyVecEnv", "VecNormalize", "one Gymnasium env", "id"],
)
def test_the_score_function_alone_trains_on_any_environment(env):
    model = build(env(), n_steps=200, score_function_weight=1.0).learn(200)
    assert model.num_timesteps >= 200
    assert len(model.ep_info_buffer) > 0
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())


@pytest.mark.parametrize(
    ("env", "name"),
    [
        (lambda: Catch(4), "Catch"),
        (lambda: SB3VecEnv(Taxi(4)), "Taxi"),
        (lambda: make_vec("CartPole-v1", 2, "cpu", "gymnasium"), "GymnasiumEnv"),
        (lambda: DummyVecEnv([lambda: Tiny(FACTORED)]), "DummyVecEnv"),
    ],
    ids=["batched", "SB3VecEnv", "numpy", "DummyVecEnv"],
)
def test_an_environment_without_a_gradient_is_refused_by_name(env, name):
    message = f"{name} has no gradient through its step, which score_function_weight 0.5 needs"
    with pytest.raises(ValueError, match=message):
        build(env(), score_function_weight=0.5)


def test_an_environment_that_came_later_is_refused_too():
    model = build(DummyVecEnv([lambda: Tiny(FACTORED)]), score_function_weight=1.0)
    model.score_function_weight = 0.0
    with pytest.raises(ValueError, match="DummyVecEnv has no gradient"):
        model.learn(8)


def test_dict_observations_train():
    env = DummyVecEnv([lambda: TinyDict(FACTORED)] * 2)
    model = build(env, "MultiInputPolicy", score_function_weight=1.0).learn(32)
    assert model._n_updates == 2


@pytest.mark.parametrize(
    ("space", "shape"),
    [(spaces.Discrete(3, start=5), ()), (FACTORED, (2,)), (spaces.MultiBinary(3), (3,))],
    ids=str,
)
def test_predictions_are_actions_of_the_space(space, shape):
    model = build(Tiny(space), score_function_weight=1.0)
    obs = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    actions, state = model.predict(obs)
    assert state is None and actions.shape == (50, *shape)
    assert all(space.contains(action) for action in actions)
    assert model.predict(obs[0])[0].shape == shape


def test_evaluation_honours_masks():
    """A legal step of Taxi costs 1 at most; an illegal one may cost 10."""
    model = build(Taxi(8, 30), score_function_weight=1.0).learn(64)
    mean = evaluate_model(model, SB3VecEnv(Taxi(8, 30)), 16, deterministic=False).mean_reward
    assert -30 <= mean <= 20


# --- SB3's callbacks and logs -------------------------------------------------------------------


def test_evaluation_callback_of_sb3_keeps_the_best_model(tmp_path):
    evaluation = EvalCallback(
        SB3VecEnv(PendulumBank(2, 20, n=2)),
        n_eval_episodes=2,
        eval_freq=8,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    build().learn(64, callback=evaluation)
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [32, 64]
    best = GumbelSHAC.load(tmp_path / "best_model", device="cpu")
    assert best.predict(np.zeros((3, 6), np.float32))[0].shape == (3, 2)


class Watch(BaseCallback):
    """Reads rewards as SB3's callbacks do, and stops after some steps."""

    def __init__(self, stop_after: int) -> None:
        super().__init__()
        self.stop_after = stop_after
        self.rewards: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self.rewards.append(np.asarray(self.locals["rewards"]))
        return len(self.rewards) < self.stop_after


def test_a_callback_sees_rewards_and_may_stop_inside_a_window():
    """The gradient of a reward is not for it, and training can go on from there."""
    callback = Watch(stop_after=5)
    model = build().learn(64, callback=callback)
    assert model.num_timesteps == 5 * 4 and model._n_updates == 0
    assert np.shape(callback.rewards) == (5, 4)
    assert not any(value.requires_grad for value in model.batched.state.values())
    model.learn(32, reset_num_timesteps=False)
    assert model._n_updates == 1


def test_every_tag_is_documented_and_reaches_tensorboard(tmp_path):
    model = build(tensorboard_log=str(tmp_path), average_reward_rate=0.1, ent_coef="auto")
    model.learn(128)
    events = EventAccumulator(str(tmp_path / "GumbelSHAC_1")).Reload()
    scalars, histograms = set(events.Tags()["scalars"]), set(events.Tags()["histograms"])
    assert histograms == {"estimator/entropy_per_factor"}
    ours = {name for name in scalars if name.startswith(("train/", "estimator/"))}
    assert ours == {
        "train/actor_loss",
        "train/average_reward",
        "train/critic_loss",
        "train/ent_coef",
        "train/explained_variance",
        "train/learning_rate",
        "train/skipped_updates",
        "estimator/entropy",
        "estimator/grad_norm",
        "estimator/temperature",
    }
    assert ours <= TAGS.keys()
    assert scalars >= {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps"}
    for name in scalars:
        assert all(math.isfinite(event.value) for event in events.Scalars(name))


def test_rewards_are_scaled_for_learning_and_logged_raw():
    model = build(probes.ProbeValue(4), reward_scale=1e-3, gamma=0.0)
    model.learn(32)
    assert {info["r"] for info in model.ep_info_buffer} == {1.0}
    target = model.prepare().samples.target
    torch.testing.assert_close(target, torch.full_like(target, 1e-3))


def test_temperature_and_learning_rate_follow_their_schedules():
    """Four windows: a temperature is that of the window's first step, a rate of its update."""
    seen = []

    class Seen(GumbelSHAC):
        def update(self) -> Any:
            rates = {group["lr"] for group in self.policy.actor.optimizer.param_groups}
            rates |= {group["lr"] for group in self.policy.critic.optimizer.param_groups}
            rates |= {group["lr"] for group in self.ent_coef_optimizer.param_groups}
            seen.append((self._temperature, *rates))
            return super().update()

    model = Seen(
        "MlpPolicy",
        bank(),
        n_steps=8,
        temperature={"schedule": "linear", "start": 1.0, "end": 0.5},
        learning_rate=Schedule("linear", 4e-3, 0.0),
        ent_coef="auto",
        policy_kwargs=SMALL,
        device="cpu",
    )
    model.learn(4 * 32)
    expected = [(1.0, 3e-3), (0.875, 2e-3), (0.75, 1e-3), (0.625, 0.0)]
    np.testing.assert_allclose(seen, expected, atol=1e-12)
    model.learn(32)  # anew
    assert seen[-1][0] == 1.0


# --- files --------------------------------------------------------------------------------------

SETTINGS = {
    "estimator": "gumbel_rao",
    "temperature": Schedule("linear", 1.0, 0.5),
    "estimator_kwargs": {"num_samples": 3},
    "score_function_weight": 0.25,
    "ent_coef": "auto_0.3",
    "target_entropy": 0.4,
    "reward_scale": 0.1,
    "average_reward_rate": 0.2,
    "max_grad_norm": 2.0,
    "normalize_observations": True,
    "normalize_rewards": True,
    "learning_rate": Schedule("cosine", 1e-3, 1e-4),
    "n_steps": 4,
    "n_epochs": 3,
    "num_minibatches": 2,
    "gamma": 0.5,
    "gae_lambda": 0.6,
    "tau": 0.3,
}


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_load_needs_nothing_but_the_file(kind, tmp_path):
    policy_kwargs = {"net_arch": {"pi": [4], "vf": [5]}, "activation_fn": torch.nn.ELU}
    model = build(policy_kwargs=policy_kwargs, **SETTINGS).learn(32)
    if kind == "zip":
        model.save(tmp_path / "model.zip")
        loaded = GumbelSHAC.load(tmp_path / "model.zip", device="cpu")
        assert loaded._n_updates == model._n_updates == 2
        assert_same(loaded.reward_scaler.state_dict(), model.reward_scaler.state_dict())
        assert_same(loaded.reward_center.state_dict(), model.reward_center.state_dict())
    else:
        save_model(model, tmp_path)
        loaded = load_model(tmp_path, device="cpu")
    assert_same(weights(loaded), weights(model))
    assert {name: getattr(loaded, name) for name in SETTINGS} == SETTINGS
    assert loaded.num_timesteps == 32
    assert loaded.objective.temperature(0.5) == 0.75
    obs = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    np.testing.assert_array_equal(
        loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0]
    )


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    """The same window of the score function gives the same weights, the optimisers going on."""
    model = build(score_function_weight=1.0, ent_coef="auto").learn(64)
    model.save(tmp_path / "model")
    loaded = GumbelSHAC.load(tmp_path / "model", env=bank(), device="cpu")
    loaded.set_logger(configure(None, []))
    loaded.rollout = model.rollout
    for each in (model, loaded):
        torch.manual_seed(0)
        each.train()
    assert_same(weights(loaded), weights(model))
    loaded.learn(32, reset_num_timesteps=False)
    assert loaded.num_timesteps == 96
    assert loaded._n_updates == 4


def test_parameters_go_from_model_to_model():
    model, other = build().learn(64), build(seed=1)
    other.set_parameters(model.get_parameters())
    assert_same(other.policy.state_dict(), model.policy.state_dict())


def test_the_policy_alone_saves_and_loads(tmp_path):
    kwargs = {"net_arch": {"pi": [4], "vf": [5, 6]}, "layer_norm": False}
    model = build(normalize_observations=True, policy_kwargs=kwargs)
    model.policy.save(tmp_path / "policy")
    loaded = SHACPolicy.load(tmp_path / "policy", device="cpu")
    assert_same(loaded.state_dict(), model.policy.state_dict())


@MIXTURES
def test_the_same_seed_gives_the_same_weights(weight):
    first, second, other = (
        weights(build(seed=seed, score_function_weight=weight).learn(64)) for seed in (3, 3, 4)
    )
    assert_same(first, second)
    name = "actor.network.layers.0.weight"
    assert not torch.equal(first[name], other[name])


# --- settings that are refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"estimator": "gumbel"}, "unknown estimator 'gumbel'; known: gumbel_softmax"),
        ({"temperature": 0.0}, r"temperature 0\.0 of estimator 'straight_through_gumbel'"),
        ({"temperature": Schedule("linear", 1.0, 0.0)}, r"temperature 0\.0"),
        ({"estimator_kwargs": {"gap": 1.0}}, "has no option 'gap'"),
        (
            {"score_function_weight": 1.0, "temperature": 1.0},
            r"temperature 1\.0 would be ignored: score_function_weight is 1",
        ),
        (
            {
                "score_function_weight": 1,
                "estimator": "gumbel_rao",
                "estimator_kwargs": {"num_samples": 2},
            },
            "estimator_kwargs .* would be ignored",
        ),
        (
            {"score_function_weight": 0.1, "estimator": "probabilities"},
            r"score_function_weight 0\.1 needs an estimator that is exactly one-hot",
        ),
        ({"score_function_weight": 1.5}, r"score_function_weight 1\.5 must be in \[0, 1\]"),
        ({"ent_coef": "high"}, "ent_coef 'high' must be a number >= 0, 'auto' or"),
        ({"ent_coef": math.nan}, "ent_coef nan"),
        ({"target_entropy": 0.5}, "target_entropy 0.5 would be ignored"),
        ({"ent_coef": "auto", "target_entropy": 9.0}, r"maximum of this space, 3\.219"),
        ({"target_entropy_fraction": 1.0}, r"target_entropy_fraction 1\.0 must be in \(0, 1\)"),
        ({"reward_scale": math.inf}, "reward_scale inf must be > 0 and finite"),
        ({"max_grad_norm": -1.0}, r"max_grad_norm -1\.0 must be > 0"),
        ({"average_reward_rate": 0.0}, r"average_reward_rate 0\.0 must be > 0"),
        ({"average_reward_rate": 1.1}, r"average_reward_rate 1\.1 must be in \[0, 1\]"),
        ({"tau": 0.0}, r"tau 0\.0 must be > 0"),
        ({"tau": 2.0}, r"tau 2\.0 must be in \[0, 1\]"),
        ({"gamma": 1.5}, r"gamma 1\.5 must be in \[0, 1\]"),
        ({"gae_lambda": -0.5}, r"gae_lambda -0\.5 must be in \[0, 1\]"),
        ({"n_epochs": 0}, "n_epochs 0 must be >= 1"),
        ({"num_minibatches": 33}, "num_minibatches 33 is more than the samples of a window"),
        (
            {"policy_kwargs": {"normalize_observations": True}},
            "policy_kwargs normalize_observations True would be ignored",
        ),
        (
            {"env": Taxi(4), "score_function_weight": 1.0, "normalize_observations": True},
            "normalize_observations is for Box",
        ),
        (
            {"env": Tiny(spaces.Box(-1, 1, (2,))), "score_function_weight": 1.0},
            "is not supported: supported are Discrete",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value[:40],
)
def test_settings_out_of_range_or_without_effect_are_refused(kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(**kwargs)
