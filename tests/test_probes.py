"""Probe environments: the contract of Gymnasium, and agents that reach the values by hand."""

import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from PIL import ImageColor

from rl_gumbel import GumbelSAC
from rl_gumbel.envs import ENVS, registered_id
from rl_gumbel.envs.canvas import BLUE
from rl_gumbel.envs.probes import ProbeAction, ProbeDiscount, ProbeFactors, ProbeObservation
from rl_gumbel.losses import joint_one_hots
from rl_gumbel.vec_env import make_vec

ALPHA, GAMMA = 0.5, 0.9
PROBES = pytest.mark.parametrize(
    "env_id", [registered_id(env_id) for env_id in ENVS if env_id.startswith("Probe")]
)
SEEDS = pytest.mark.parametrize("seed", [0, 1])


def make(env_id: str) -> gym.Env:
    return gym.make(f"rl_gumbel/{env_id}-v0")


# --- the environments -------------------------------------------------------------------------


def blue_tiles(picture, rows, columns):
    """Rows and columns of the tiles in blue, by the centres of their upper halves."""
    color = ImageColor.getrgb(BLUE)
    height, width = np.array(picture.shape[:2]) / (rows + 0.5, columns + 0.5)  # 0.25 around
    centres = [(0.25 + i + 0.15, 0.25 + j + 0.5) for i in range(rows) for j in range(columns)]
    found = [tuple(picture[int(y * height), int(x * width)]) == color for y, x in centres]
    return [divmod(i, columns) for i in np.flatnonzero(found)]


def test_pictures_show_the_observation():
    env = make_vec("ProbeObservation-v0", 8, "cpu")
    shown = env.reset(seed=0).squeeze(-1).tolist()
    assert set(shown) == {-1, 1}
    for i, value in enumerate(shown):
        assert blue_tiles(env.render(i), 1, 3) == [(0, value + 1)]
    env = make_vec("ProbeDiscount-v0", 1, "cpu")
    env.reset(seed=0)
    assert blue_tiles(env.render(), 1, 3) == [(0, 1)]
    env.step(torch.tensor([0]))
    assert blue_tiles(env.render(), 1, 3) == [(0, 2)]


def test_pictures_show_the_category_of_each_factor():
    env = make_vec("ProbeFactors-v0", 8, "cpu")
    for i, (first, second) in enumerate(env.reset(seed=0).tolist()):
        assert blue_tiles(env.render(i), 2, 3) == [(0, first), (1, second)]


@pytest.mark.parametrize("space", [spaces.MultiBinary(60), spaces.Discrete(300)])
def test_pictures_of_many_factors_or_categories_fit(space):
    env = ProbeFactors(1, space)
    env.reset(seed=0)
    assert max(env.render().shape) < 4000


@PROBES
def test_probes_keep_the_contract_of_gymnasium(env_id):
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        check_env(gym.make(env_id).unwrapped, skip_render_check=True)


@PROBES
def test_probes_repeat_themselves_from_a_seed(env_id):
    def play() -> list:
        env = gym.make(env_id)
        env.action_space.seed(0)
        log = [env.reset(seed=0)[0].tolist()]
        for _ in range(20):
            obs, reward, terminated, _, _ = env.step(env.action_space.sample())
            log.append([obs.tolist(), reward, terminated])
            if terminated:
                log.append(env.reset()[0].tolist())
        return log

    assert play() == play()


def play_one(env: gym.Env, action) -> list[float]:
    """The rewards of one episode of the same action."""
    rewards, ended = [], False
    while not ended:
        _, reward, ended, truncated, _ = env.step(action)
        rewards.append(reward)
        assert not truncated
    return rewards


def test_rewards_by_hand():
    env = make("ProbeValue")
    env.reset(seed=0)
    assert play_one(env, 0) == [1]

    env = make("ProbeObservation")
    seen = set()
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        assert play_one(env, 0) == [obs[0]]
        seen.add(float(obs[0]))
    assert seen == {-1.0, 1.0}

    env = make("ProbeDiscount")
    assert env.reset(seed=0)[0].tolist() == [0]
    assert play_one(env, 0) == [0, 1]
    assert env.reset()[0].tolist() == [0]

    env = make("ProbeAction")
    for action, reward in ((0, -1), (1, 1)):
        env.reset(seed=0)
        assert play_one(env, action) == [reward]


def test_factors_are_rewarded_one_by_one():
    env = make("ProbeFactors")
    assert env.action_space == spaces.MultiDiscrete([3, 2])
    obs, _ = env.reset(seed=0)
    wrong = (obs + 1) % [3, 2]
    for action, reward in ((obs, 2), (wrong, 0), (np.array([obs[0], wrong[1]]), 1)):
        env.reset(seed=0)
        assert play_one(env, action) == [reward]


def test_the_start_of_a_space_is_honoured():
    """Category 0 is action -1."""
    env = make("ProbeStart")
    assert env.action_space == spaces.Discrete(3, start=-1)
    obs, _ = env.reset(seed=0)
    assert play_one(env, int(obs[0]) - 1) == [1]


def test_bits_are_rewarded_one_by_one():
    env = make("ProbeBits")
    assert env.action_space == spaces.MultiBinary(3)
    obs, _ = env.reset(seed=0)
    assert play_one(env, obs.astype(np.int8)) == [3]


# --- in batches -------------------------------------------------------------------------------


def test_batched_observations_are_drawn_uniformly():
    """Within four standard errors, for each factor and category."""
    count = 10_000
    signs = ProbeObservation(count).reset(seed=0)
    assert signs.shape == (count, 1)
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 / count**0.5
    shown = ProbeFactors(count).reset(seed=0)
    assert shown.dtype == torch.int64
    for factor, size in enumerate((3, 2)):
        frequencies = shown[:, factor].bincount(minlength=size) / count
        error = (1 / size * (1 - 1 / size) / count) ** 0.5
        torch.testing.assert_close(
            frequencies, torch.full((size,), 1 / size), atol=4 * error, rtol=0
        )


def test_batched_episodes_by_hand():
    env = ProbeDiscount(2)
    assert env.reset(seed=0).tolist() == [[0], [0]]
    first, last = (env.step(torch.zeros(2, dtype=torch.int64)) for _ in range(2))
    assert (first.reward.tolist(), first.ended.tolist()) == ([0, 0], [False, False])
    assert first.obs.tolist() == [[1], [1]]
    assert (last.reward.tolist(), last.terminated.tolist()) == ([1, 1], [True, True])
    assert (last.final_obs.tolist(), last.obs.tolist()) == ([[1], [1]], [[0], [0]])
    env = ProbeObservation(64)
    shown = env.reset(seed=0)
    step = env.step(torch.zeros(64, dtype=torch.int64))
    torch.testing.assert_close(step.reward, shown.squeeze(-1))
    assert step.terminated.all()


def test_rewards_carry_their_gradient_to_a_one_hot():
    env = ProbeAction(2, gradients=True)
    env.reset(seed=0)
    one_hot = torch.eye(2).unsqueeze(1).requires_grad_()
    step = env.step(one_hot)
    assert step.reward.tolist() == [-1, 1]
    step.reward.sum().backward()
    assert one_hot.grad.tolist() == [[[-1, 1]], [[-1, 1]]]

    env = ProbeFactors(5, gradients=True)
    shown = env.reset(seed=0)
    taken = torch.tensor([[0, 0], [1, 1], [2, 0], [0, 1], [1, 0]])
    one_hot = env.layout.index_to_one_hot(taken).requires_grad_()
    reward = env.step(one_hot).reward
    assert reward.tolist() == (taken == shown).sum(-1).tolist()
    reward.sum().backward()
    torch.testing.assert_close(one_hot.grad, env.layout.index_to_one_hot(shown))


@PROBES
def test_batched_probes_need_no_value_of_a_tensor(env_id):
    env = make_vec(env_id, 3, "meta")
    env.reset(seed=0)
    action = torch.zeros(3, env.layout.num_factors, dtype=torch.int64, device="meta")
    assert env.step(action).reward.shape == (3,)


# --- agents -----------------------------------------------------------------------------------

KINDS = {
    "concat": {"critic": "concat", "estimator": "straight_through_gumbel", "temperature": 0.5},
    "multilinear": {"critic": "multilinear", "estimator": "straight_through"},
    "exact": {"critic": "concat", "actor_gradient": "exact"},
    "local_expectation": {"critic": "multilinear", "actor_gradient": "local_expectation"},
}
# Straight-through Gumbel through a concat critic is biased, the others are not.
BIAS = {"concat": 0.3, "multilinear": 0.03, "exact": 0.03, "local_expectation": 0.03}
EVERY_KIND = pytest.mark.parametrize("kind", list(KINDS))
EVERY_CRITIC = pytest.mark.parametrize("kind", ["concat", "multilinear"])


def trained(env_id: str, kind: str, seed: int, updates: int) -> GumbelSAC:
    """Tiny networks; the entropy coefficient is fixed, so that soft values are known by hand."""
    model = GumbelSAC(
        "MlpPolicy",
        make(env_id),
        learning_rate=1e-2,
        learning_starts=200,
        train_freq=4,
        gradient_steps=4,
        batch_size=32,
        tau=0.2,
        gamma=GAMMA,
        ent_coef=ALPHA,
        cosine_interval=0,
        buffer_size=5000,
        policy_kwargs={"net_arch": [32]},
        seed=seed,
        device="cpu",
        **KINDS[kind],
    )
    return model.learn(200 + updates)


def soft_values(model: GumbelSAC, obs: list) -> tuple[np.ndarray, np.ndarray]:
    """What the agent believes: Q `[B, J]`, the mean of the ensemble, and V = E[Q] + alpha H `[B]`.

    By enumeration of the joint actions.
    """
    batch, _ = model.policy.obs_to_tensor(np.array(obs))
    joint = joint_one_hots(model.layout, torch.device("cpu"))
    with torch.no_grad():
        policy = model.actor(batch)
        q = torch.stack(
            [model.critic(batch, action.expand(len(obs), -1, -1)).mean(0) for action in joint], -1
        )
        log_probs = torch.stack([policy.log_prob(action.unsqueeze(0)) for action in joint], -1)
        v = (log_probs.exp() * (q - ALPHA * log_probs)).sum(-1)
    return q.numpy(), v.numpy()


@EVERY_CRITIC
def test_agents_learn_a_value(kind):
    q, v = soft_values(trained("ProbeValue", kind, 0, 100), [[0.0]])
    np.testing.assert_allclose(q, [[1]], atol=0.05)
    np.testing.assert_allclose(v, [1], atol=0.05)


@EVERY_CRITIC
def test_agents_learn_a_value_from_the_observation(kind):
    q, _ = soft_values(trained("ProbeObservation", kind, 1, 150), [[-1.0], [1.0]])
    np.testing.assert_allclose(q, [[-1], [1]], atol=0.05)


@EVERY_CRITIC
def test_agents_discount(kind):
    """The first state is worth gamma: the terminal one adds nothing after its reward."""
    q, _ = soft_values(trained("ProbeDiscount", kind, 2, 300), [[0.0], [1.0]])
    np.testing.assert_allclose(q, [[GAMMA], [1]], atol=0.05)


@SEEDS
@EVERY_KIND
def test_agents_choose_softly(kind, seed):
    """Action 1 with probability sigmoid(2 / alpha); V = alpha log(e^(-1/alpha) + e^(1/alpha))."""
    model = trained("ProbeAction", kind, seed, 300)
    q, v = soft_values(model, [[0.0]])
    np.testing.assert_allclose(q, [[-1, 1]], atol=0.1)
    best = ALPHA * math.log(math.exp(-1 / ALPHA) + math.exp(1 / ALPHA))
    np.testing.assert_allclose(v, [best], atol=0.1)
    probability = model.actor(torch.zeros(1, 1)).probs[0, 0, 1].item()
    assert probability == pytest.approx(1 / (1 + math.exp(-2 / ALPHA)), abs=0.02)


@pytest.mark.parametrize(
    ("env_id", "kind", "seed"),
    [
        *(("ProbeFactors", kind, seed) for seed, kind in enumerate(KINDS)),
        *(("ProbeBits", kind, 2) for kind in ("concat", "multilinear")),
        *(("ProbeStart", kind, 3) for kind in ("concat", "multilinear")),
    ],
)
def test_agents_give_each_factor_its_credit(env_id, kind, seed):
    """With e = exp(1 / alpha): V = sum alpha log(e + n - 1), P(right) = e / (e + n - 1)."""
    model = trained(env_id, kind, seed, 400)
    sizes = model.layout.sizes
    obs = list(np.ndindex(*sizes))
    q, v = soft_values(model, obs)
    reward = [[sum(map(int.__eq__, shown, taken)) for taken in obs] for shown in obs]
    np.testing.assert_allclose(q, reward, atol=0.3)
    e = math.exp(1 / ALPHA)
    best = sum(ALPHA * math.log(e + size - 1) for size in sizes)
    np.testing.assert_allclose(v, np.full(len(obs), best), atol=0.2)
    probs = model.actor(model.policy.obs_to_tensor(np.array(obs))[0]).probs.detach()
    right = probs.gather(-1, torch.tensor(obs).unsqueeze(-1)).squeeze(-1).numpy()
    fair = np.array([e / (e + size - 1) for size in sizes])
    np.testing.assert_allclose(right, np.tile(fair, (len(obs), 1)), atol=BIAS[kind])
    actions, _ = model.predict(np.array(obs), deterministic=True)
    expected = np.array(obs) + model.layout.starts
    np.testing.assert_array_equal(actions.reshape(expected.shape), expected)
