"""GumbelREPPO as an SB3 algorithm: probes, environments, callbacks, logs, files, refusals."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_envs import Tiny, TinyDict

from rl_gumbel import GumbelREPPO, Schedule, load_model, save_model
from rl_gumbel.callbacks import evaluate_model
from rl_gumbel.envs import probes
from rl_gumbel.envs.base import TorchEnv
from rl_gumbel.envs.cartpole import CartPole
from rl_gumbel.envs.taxi import Taxi
from rl_gumbel.logger import TAGS
from rl_gumbel.losses import joint_one_hots
from rl_gumbel.policies.reppo import REPPOPolicy
from rl_gumbel.vec_env import SB3VecEnv

FACTORED = spaces.MultiDiscrete([3, 2], start=[-1, 4])
SMALL = {"net_arch": [16]}


def build(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> GumbelREPPO:
    settings = {"n_steps": 8, "num_minibatches": 2, "policy_kwargs": SMALL, "seed": 0}
    env = CartPole(4, 20) if env is None else env
    return GumbelREPPO(policy, env, device="cpu", **(settings | kwargs))


def weights(model: GumbelREPPO) -> dict[str, torch.Tensor]:
    state = {name: value.clone() for name, value in model.policy.state_dict().items()}
    logs = {"ent": model.log_ent_coef, "kl": model.log_kl_coef}
    return state | {name: value.detach().clone() for name, value in logs.items()}


def assert_same(left: Any, right: Any) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


# --- probes: agents that reach values known by hand -------------------------------------------

ALPHA, GAMMA = 0.5, 0.9
KINDS = {
    "concat": {"critic": "concat", "estimator": "straight_through_gumbel", "temperature": 0.5},
    "bins": {"actor_gradient": "local_expectation", "num_bins": 41, "value_range": (-2, 4)},
    "multilinear": {"critic": "multilinear", "estimator": "straight_through"},
    "exact": {"critic": "concat", "actor_gradient": "exact"},
}
# Straight-through Gumbel through a concat critic is biased, the others are not.
BIAS = {"concat": 0.25, "bins": 0.1, "multilinear": 0.02, "exact": 0.02}
EVERY_KIND = pytest.mark.parametrize("kind", list(KINDS))
EVERY_CRITIC = pytest.mark.parametrize("kind", ["concat", "bins", "multilinear"])


def trained(env: TorchEnv, kind: str, iterations: int, seed: int = 0) -> GumbelREPPO:
    """Tiny networks; the entropy coefficient is fixed, so that soft values are known by hand."""
    steps = 4
    model = GumbelREPPO(
        "MlpPolicy",
        env,
        learning_rate=Schedule("linear", 1e-2, 1e-3),
        n_steps=steps,
        num_minibatches=2,
        gamma=GAMMA,
        ent_coef=ALPHA,
        max_grad_norm=None,
        cosine_interval=0,
        policy_kwargs={"net_arch": [32]},
        seed=seed,
        device="cpu",
        **KINDS[kind],
    )
    return model.learn(iterations * steps * env.num_envs)


def beliefs(model: GumbelREPPO, obs: torch.Tensor) -> tuple[np.ndarray, ...]:
    """Q `[B, J]` and probabilities `[B, J]` of the joint actions, V = E[Q] + alpha H `[B]`."""
    joint = joint_one_hots(model.layout, torch.device("cpu"))
    with torch.no_grad():
        policy = model.policy.distribution(obs)
        rows = [action.expand(len(obs), -1, -1) for action in joint]
        q = torch.stack([model.policy.critic(obs, row)[0] for row in rows], -1)
        log_probs = torch.stack([policy.log_prob(row) for row in rows], -1)
    probs = log_probs.exp()
    return q.numpy(), probs.numpy(), (probs * (q - ALPHA * log_probs)).sum(-1).numpy()


@EVERY_CRITIC
def test_agents_learn_a_value(kind):
    q, _, v = beliefs(trained(probes.ProbeValue(16), kind, 25), torch.zeros(1, 1))
    np.testing.assert_allclose(q, [[1]], atol=0.05)
    np.testing.assert_allclose(v, [1], atol=0.05)


@EVERY_CRITIC
def test_agents_learn_a_value_from_the_observation(kind):
    model = trained(probes.ProbeObservation(16), kind, 25)
    q, _, _ = beliefs(model, torch.tensor([[-1.0], [1.0]]))
    np.testing.assert_allclose(q, [[-1], [1]], atol=0.05)


@EVERY_CRITIC
def test_agents_discount(kind):
    """The first state is worth gamma: the terminal one adds nothing after its reward."""
    model = trained(probes.ProbeDiscount(16), kind, 40)
    q, _, _ = beliefs(model, torch.tensor([[0.0], [1.0]]))
    np.testing.assert_allclose(q, [[GAMMA], [1]], atol=0.05)


@EVERY_KIND
def test_agents_choose_softly(kind):
    """Action 1 with probability sigmoid(2 / alpha); V = alpha log(e^(-1/alpha) + e^(1/alpha))."""
    model = trained(probes.ProbeAction(32), kind, 50)
    q, probs, v = beliefs(model, torch.zeros(1, 1))
    np.testing.assert_allclose(q[:, 1], [1], atol=0.02)
    best = ALPHA * math.log(math.exp(-1 / ALPHA) + math.exp(1 / ALPHA))
    np.testing.assert_allclose(v, [best], atol=0.03)
    expected = 1 / (1 + math.exp(-2 / ALPHA))
    np.testing.assert_allclose(probs[:, 1], [expected], atol=0.1 * BIAS[kind])


@pytest.mark.parametrize(
    ("space", "kind"),
    [
        *((spaces.MultiDiscrete([3, 2]), kind) for kind in KINDS),
        (spaces.MultiBinary(3), "concat"),
        (spaces.Discrete(3, start=-1), "multilinear"),
    ],
    ids=str,
)
def test_agents_give_each_factor_its_credit(space, kind):
    """With e = exp(1 / alpha): V = sum alpha log(e + n - 1), P(right) = e / (e + n - 1)."""
    model = trained(probes.ProbeFactors(64, space), kind, 50)
    sizes = model.layout.sizes
    shown = torch.tensor(list(np.ndindex(*sizes)))
    q, probs, v = beliefs(model, shown)
    reward = (shown[:, None] == shown[None]).sum(-1).numpy()
    # On-policy data says little of actions that are hardly taken.
    np.testing.assert_array_less((probs * np.abs(q - reward)).sum(-1), 0.2)
    e = math.exp(1 / ALPHA)
    best = sum(ALPHA * math.log(e + size - 1) for size in sizes)
    np.testing.assert_allclose(v, np.full(len(shown), best), atol=0.15)
    distribution = model.policy.distribution(shown)
    right = distribution.probs.gather(-1, shown.unsqueeze(-1)).squeeze(-1).detach().numpy()
    fair = np.array([e / (e + size - 1) for size in sizes])
    np.testing.assert_allclose(right, np.tile(fair, (len(shown), 1)), atol=BIAS[kind])
    assert torch.equal(distribution.mode, shown)


def test_straight_through_hardly_passes_bins():
    """Why the docstring warns: a softmax over bins is flat at the corners that data shows.

    Q differs by 2 between the actions, and the critic knows it.
    """
    model = trained(probes.ProbeAction(32), "bins", 50)
    critic, obs = model.policy.critic, torch.zeros(2, 1)
    corners = torch.eye(2).unsqueeze(1).requires_grad_()
    values = critic(obs, corners)[0]
    assert values[1] - values[0] > 1.7
    slopes = torch.autograd.grad(values.sum(), corners)[0]
    assert ((slopes[:, 0, 1] - slopes[:, 0, 0]).abs() < 0.5).any()


# --- environments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env",
    [
        lambda: CartPole(4, 20),
        lambda: SB3VecEnv(CartPole(4, 20)),
        lambda: DummyVecEnv([lambda: Monitor(Tiny(FACTORED))] * 4),
        lambda: VecNormalize(DummyVecEnv([lambda: Monitor(Tiny(spaces.MultiBinary(3)))] * 4)),
        lambda: Monitor(Tiny(spaces.Discrete(3, start=5))),
        lambda: "CartPole-v1",
    ],
    ids=["batched", "SB3VecEnv", "DummyVecEnv", "VecNormalize", "one Gymnasium env", "id"],
)
def test_every_kind_of_environment_trains_and_logs_episodes(env):
    model = build(env(), n_steps=40).learn(160)
    assert model.num_timesteps >= 160
    assert all(1 <= info["l"] <= 500 for info in model.ep_info_buffer)
    assert len(model.ep_info_buffer) > 0
    assert all(value.isfinite().all() for value in weights(model).values())


@pytest.mark.parametrize("share", [False, True], ids=["own", "shared"])
def test_dict_observations_train(share):
    env = DummyVecEnv([lambda: TinyDict(FACTORED)] * 2)
    kwargs = {**SMALL, "share_features_extractor": share}
    model = build(env, "MultiInputPolicy", policy_kwargs=kwargs).learn(32)
    assert model._n_updates == 2 * 4 * 2


def test_one_category_is_no_choice_and_trains():
    model = build(probes.ProbeValue(4)).learn(64)
    assert all(value.isfinite().all() for value in weights(model).values())


@pytest.mark.parametrize(
    ("space", "shape"),
    [(spaces.Discrete(3, start=5), ()), (FACTORED, (2,)), (spaces.MultiBinary(3), (3,))],
    ids=str,
)
def test_predictions_are_actions_of_the_space(space, shape):
    model = build(Tiny(space))
    obs = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    actions, state = model.predict(obs)
    assert state is None and actions.shape == (50, *shape)
    assert all(space.contains(action) for action in actions)
    assert model.predict(obs[0])[0].shape == shape


def test_evaluation_honours_masks():
    """A legal step of Taxi costs 1 at most; an illegal one may cost 10."""
    model = build(Taxi(8, 30)).learn(64)
    mean = evaluate_model(model, SB3VecEnv(Taxi(8, 30)), 16, deterministic=False).mean_reward
    assert -30 <= mean <= 20


# --- SB3's callbacks and logs -----------------------------------------------------------------


def test_evaluation_callback_of_sb3_keeps_the_best_model(tmp_path):
    evaluation = EvalCallback(
        SB3VecEnv(CartPole(2, 20)),
        n_eval_episodes=2,
        eval_freq=8,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    build().learn(64, callback=evaluation)
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [32, 64]
    best = GumbelREPPO.load(tmp_path / "best_model", device="cpu")
    assert best.predict(np.zeros((3, 4), np.float32))[0].shape == (3,)


def test_every_tag_is_documented_and_reaches_tensorboard(tmp_path):
    model = build(tensorboard_log=str(tmp_path), cosine_interval=1, num_bins=None)
    model.learn(128)
    events = EventAccumulator(str(tmp_path / "GumbelREPPO_1")).Reload()
    scalars, histograms = set(events.Tags()["scalars"]), set(events.Tags()["histograms"])
    assert histograms == {"estimator/entropy_per_factor"}
    ours = {name for name in scalars if name.startswith(("train/", "estimator/"))}
    assert ours <= TAGS.keys()
    assert ours >= {
        "train/actor_loss",
        "train/critic_loss",
        "train/ent_coef",
        "train/explained_variance",
        "train/kl",
        "train/kl_coef",
        "train/kl_exceeded",
        "estimator/cosine",
        "estimator/entropy",
        "estimator/grad_norm",
        "estimator/temperature",
    }
    assert scalars >= {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps"}
    for name in scalars:
        assert all(math.isfinite(event.value) for event in events.Scalars(name))


def test_rewards_are_scaled_for_the_critic_and_logged_raw():
    model = build(CartPole(4, 5), reward_scale=1e-3, gamma=0.0, ent_coef=0.0)
    model.learn(32)
    assert {info["r"] for info in model.ep_info_buffer} == {5.0}
    target = model.prepare()[0].target
    torch.testing.assert_close(target, torch.full_like(target, 1e-3))


def test_temperature_and_learning_rate_follow_their_schedules():
    """Four iterations, the last at the end of training."""
    seen = []

    class Watch(GumbelREPPO):
        def update(self, temperature: float) -> Any:
            rates = {group["lr"] for group in self.policy.actor.optimizer.param_groups}
            rates |= {group["lr"] for group in self.multiplier_optimizer.param_groups}
            seen.append((temperature, *rates))
            return super().update(temperature)

    model = Watch(
        "MlpPolicy",
        CartPole(4),
        n_steps=8,
        temperature={"schedule": "linear", "start": 1.0, "end": 0.5},
        learning_rate=Schedule("linear", 4e-3, 0.0),
        policy_kwargs=SMALL,
        device="cpu",
    )
    model.learn(4 * 32)
    expected = [(0.875, 3e-3), (0.75, 2e-3), (0.625, 1e-3), (0.5, 0.0)]
    np.testing.assert_allclose(seen, expected, atol=1e-12)


# --- files ------------------------------------------------------------------------------------

SETTINGS = {
    "estimator": "gumbel_rao",
    "temperature": Schedule("linear", 1.0, 0.5),
    "estimator_kwargs": {"num_samples": 3},
    "critic": "concat",
    "num_bins": 11,
    "value_range": [-1.0, 5.0],
    "ent_coef": "auto_0.3",
    "target_entropy": 0.4,
    "kl_coef": "auto_0.7",
    "kl_bound": 0.2,
    "reward_scale": 0.1,
    "max_grad_norm": 2.0,
    "normalize_observations": True,
    "cosine_interval": 7,
    "learning_rate": Schedule("cosine", 1e-3, 1e-4),
    "n_steps": 4,
    "n_epochs": 3,
    "num_minibatches": 2,
    "gamma": 0.5,
    "gae_lambda": 0.6,
}


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_load_needs_nothing_but_the_file(kind, tmp_path):
    policy_kwargs = {"net_arch": {"pi": [4], "qf": [5]}, "activation_fn": torch.nn.Tanh}
    model = build(policy_kwargs=policy_kwargs, **SETTINGS).learn(32)
    if kind == "zip":
        model.save(tmp_path / "model.zip")
        loaded = GumbelREPPO.load(tmp_path / "model.zip", device="cpu")
        assert loaded._n_updates == model._n_updates == 12
    else:
        save_model(model, tmp_path)
        loaded = load_model(tmp_path, device="cpu")
    assert_same(weights(loaded), weights(model))
    assert {name: getattr(loaded, name) for name in SETTINGS} == SETTINGS
    assert loaded.num_timesteps == 32
    assert loaded.objective.temperature(0.5) == 0.75
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.testing.assert_array_equal(
        loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0]
    )


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    """The same rollout through the saved and the loaded model gives the same weights."""
    model = build().learn(64)
    model.save(tmp_path / "model")
    loaded = GumbelREPPO.load(tmp_path / "model", env=CartPole(4, 20), device="cpu")
    loaded.set_logger(configure(None, []))
    loaded.rollout = model.rollout
    for each in (model, loaded):
        torch.manual_seed(0)
        each.train()
    assert_same(weights(loaded), weights(model))
    loaded.learn(32, reset_num_timesteps=False)
    assert loaded.num_timesteps == 96
    assert loaded._n_updates == 8 * 4


def test_parameters_go_from_model_to_model():
    model, other = build().learn(64), build(seed=1)
    other.set_parameters(model.get_parameters())
    assert_same(other.policy.state_dict(), model.policy.state_dict())


def test_the_policy_alone_saves_and_loads(tmp_path):
    kwargs = {"net_arch": {"pi": [4], "qf": [5, 6]}, "n_critics": 3}
    model = build(num_bins=7, normalize_observations=True, policy_kwargs=kwargs)
    model.policy.save(tmp_path / "policy")
    loaded = REPPOPolicy.load(tmp_path / "policy", device="cpu")
    assert_same(loaded.state_dict(), model.policy.state_dict())


def test_the_same_seed_gives_the_same_weights():
    first, second, other = (weights(build(seed=seed).learn(64)) for seed in (3, 3, 4))
    assert_same(first, second)
    assert not torch.equal(first["ent"], other["ent"])


# --- settings that are refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"estimator": "gumbel"}, "unknown estimator 'gumbel'; known: gumbel_softmax"),
        ({"critic": "linear"}, "unknown critic 'linear'; known: concat, multilinear"),
        ({"actor_gradient": "sum"}, "unknown actor_gradient 'sum'; known: estimator, exact"),
        ({"temperature": 0.0}, r"temperature 0\.0 of estimator 'straight_through_gumbel'"),
        ({"temperature": Schedule("linear", 1.0, 0.0)}, r"temperature 0\.0"),
        ({"estimator_kwargs": {"gap": 1.0}}, "has no option 'gap'"),
        ({"actor_gradient": "exact", "temperature": 1.0}, r"temperature 1\.0 would be ignored"),
        (
            {
                "actor_gradient": "exact",
                "estimator": "gumbel_rao",
                "estimator_kwargs": {"num_samples": 2},
            },
            "estimator_kwargs .* would be ignored",
        ),
        ({"ent_coef": "high"}, "ent_coef 'high' must be a number >= 0, 'auto' or"),
        ({"ent_coef": "auto_0"}, "ent_coef 'auto_0'"),
        ({"ent_coef": "auto_x"}, "ent_coef 'auto_x'"),
        ({"kl_coef": "auto_inf"}, "kl_coef 'auto_inf'"),
        ({"kl_coef": -0.1}, r"kl_coef -0\.1"),
        ({"ent_coef": math.nan}, "ent_coef nan"),
        ({"ent_coef": 0.1, "target_entropy": 0.5}, "target_entropy 0.5 would be ignored"),
        ({"target_entropy": 0.7}, r"target_entropy 0\.7 .* maximum of this space, 0\.693"),
        ({"target_entropy": "half"}, "target_entropy 'half'"),
        ({"target_entropy_fraction": 1.0}, r"target_entropy_fraction 1\.0 must be in \(0, 1\)"),
        ({"kl_bound": 0.0}, r"kl_bound 0\.0 must be > 0"),
        ({"reward_scale": math.inf}, "reward_scale inf must be > 0 and finite"),
        ({"max_grad_norm": -1.0}, r"max_grad_norm -1\.0 must be > 0"),
        ({"gamma": 1.5}, r"gamma 1\.5 must be in \[0, 1\]"),
        ({"gae_lambda": -0.5}, r"gae_lambda -0\.5 must be in \[0, 1\]"),
        ({"n_epochs": 0}, "n_epochs 0 must be >= 1"),
        ({"cosine_interval": -1}, "cosine_interval -1 must be >= 0"),
        ({"num_minibatches": 33}, "num_minibatches 33 is more than the samples of a rollout"),
        ({"value_range": [0, 1]}, r"value_range \[0, 1\] would be ignored"),
        ({"num_bins": 1}, "num_bins 1 must be an integer >= 2"),
        ({"num_bins": 9, "value_range": [1, 0]}, "must be two numbers, finite and increasing"),
        ({"policy_kwargs": {"critic": "multilinear"}}, "policy_kwargs critic 'multilinear' would"),
        ({"policy_kwargs": {"num_bins": 5}}, "policy_kwargs num_bins 5 would be ignored"),
        ({"policy_kwargs": {"rank": 2}}, "rank 2 would be ignored"),
        (
            {"critic": "multilinear", "policy_kwargs": {"action_layer": "first"}},
            "action_layer .first. would be ignored",
        ),
        (
            {"env": Tiny(FACTORED), "critic": "multilinear", "num_bins": 5},
            "cannot have bins for the 2 factors",
        ),
        ({"env": Taxi(4), "normalize_observations": True}, "normalize_observations is for Box"),
        ({"env": Tiny(spaces.MultiBinary(9)), "actor_gradient": "exact"}, "more than 256; use"),
        ({"env": Tiny(spaces.Box(-1, 1, (2,)))}, "is not supported: supported are Discrete"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value[:40],
)
def test_settings_out_of_range_or_without_effect_are_refused(kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(**kwargs)
