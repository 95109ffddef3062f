"""Discrete and Gaussian codes of observations: values, gradients, learning, SB3 and files."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from device_reads import DeviceReads
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from rl_gumbel import (
    ESTIMATORS,
    BatchedPPO,
    CodesCallback,
    GaussianCodes,
    GumbelCodes,
    GumbelREPPO,
    GumbelSAC,
    Schedule,
    load_model,
    make_vec,
    pretrain_codes,
    save_model,
)
from rl_gumbel.codes_training import find_codes, prepare

FLAT = spaces.Box(-2, 2, (3,))
MINATAR = spaces.Box(0, 1, (10, 10, 4), np.uint8)
SPACES = [
    FLAT,
    spaces.Box(-np.inf, np.inf, (2, 3)),
    spaces.Box(0, 255, (3, 36, 41), np.uint8),
    MINATAR,
    spaces.Box(0, 1, (6, 7, 2), np.bool_),
    spaces.Box(0, 1, (4, 4, 2)),
]
SMALL = {"num_factors": 3, "num_categories": 4, "embedding_dim": 2, "net_arch": [8]}
KINDS = {"gumbel": (GumbelCodes, SMALL), "gaussian": (GaussianCodes, {"net_arch": [8]})}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_codes(space=FLAT, **kwargs):
    return GumbelCodes(space, **{**SMALL, **kwargs})


def sample(space, number=5):
    space.seed(0)
    return torch.as_tensor(np.stack([space.sample() for _ in range(number)]))


def encoder_gradient(codes):
    return sum(p.grad.abs().sum().item() for p in codes.encoder.parameters() if p.grad is not None)


# --- values -----------------------------------------------------------------------------------


def test_features_are_the_codebook_rows_of_the_argmax():
    codes, obs = make_codes(), sample(FLAT)
    index = codes.infer(obs).argmax(-1)
    rows = [[codes.codebook[k, n] for k, n in enumerate(row)] for row in index.tolist()]
    expected = torch.stack([torch.cat(row) for row in rows])
    assert torch.equal(codes.codes(obs), index)
    assert torch.equal(codes(obs), expected)
    assert codes.features_dim == expected.shape[1] == 6


@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{space.shape}{space.dtype}")
@pytest.mark.parametrize("kind", KINDS)
def test_any_box_is_coded_and_reconstructed_in_its_shape(space, kind):
    make, kwargs = KINDS[kind]
    codes, raw = make(space, **kwargs), sample(space)
    obs = prepare(codes, raw, space)
    assert codes(obs).shape == (5, codes.features_dim)
    assert codes.reconstruct(obs).shape == raw.shape
    assert codes.loss(obs).isfinite()


@pytest.mark.parametrize(
    ("shape", "channels"), [((10, 10, 4), 4), ((4, 12, 10), 4), ((10, 10, 10), 10)]
)
def test_convolutions_see_channels(shape, channels):
    """A ball that moves along an axis taken for channels would be another pixel's weight."""
    codes = make_codes(spaces.Box(0, 1, shape, np.uint8))
    layers = [layer for layer in codes.encoder if isinstance(layer, torch.nn.Conv2d)]
    assert layers[0].in_channels == channels
    obs = torch.zeros(1, *shape)
    last = shape[2] == channels
    (obs[..., 0] if last else obs[:, 0]).fill_(1)
    seen = {}
    layers[0].register_forward_hook(lambda _, inputs, __: seen.update(first=inputs[0]))
    codes(obs)
    assert seen["first"][0].flatten(1).sum(1).tolist() == [seen["first"][0, 0].numel()] + [0] * (
        channels - 1
    )


def test_gumbel_divergence_equals_that_of_torch():
    logits = torch.randn(5, 3, 4)
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=torch.zeros(5, 3, 4)))
    torch.testing.assert_close(make_codes().divergence(logits), expected.sum(-1))


def test_gaussian_divergence_equals_that_of_torch():
    codes = GaussianCodes(FLAT, latent_dim=4)
    parameters = codes.infer(sample(FLAT))
    mean, std = parameters.unbind(1)
    expected = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(codes.divergence(parameters), expected)


@pytest.mark.parametrize(("space", "likelihood"), [(MINATAR, "bernoulli"), (FLAT, "gaussian")])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_negative_log_likelihood_and_the_weighted_divergence(space, likelihood, kind):
    """In evaluation mode, where the code is no draw; a normal's constant is left out."""
    make, kwargs = KINDS[kind]
    codes, obs = make(space, kl_weight=0.3, **kwargs).eval(), sample(space).float()
    mean = codes.reconstruct(obs)
    if likelihood == "bernoulli":
        log_prob = Bernoulli(mean, validate_args=False).log_prob(obs)
    else:
        log_prob = Normal(mean, 1.0).log_prob(obs) + math.log(2 * math.pi) / 2
    divergence = codes.divergence(codes.infer(obs))
    expected = (-log_prob.flatten(1).sum(1) + 0.3 * divergence).mean()
    assert codes.likelihood == likelihood
    torch.testing.assert_close(codes.loss(obs), expected)


def test_perplexity_counts_the_categories_in_use():
    """Factor 1 uses all of 4 alike, factor 2 one, factor 3 two: (4 + 1 + 2) / 3."""
    index = torch.tensor([[0, 2, 0], [1, 2, 0], [2, 2, 3], [3, 2, 3]])
    logits = torch.zeros(4, 3, 4).scatter(-1, index.unsqueeze(-1), 5.0)
    assert make_codes().usage(logits)["codes/perplexity"].item() == pytest.approx(7 / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_drawn_in_training_and_fixed_in_evaluation(kind):
    make, kwargs = KINDS[kind]
    codes, obs = make(FLAT, sample_features=True, **kwargs), sample(FLAT)
    assert not torch.equal(codes(obs), codes(obs))
    assert codes.loss(obs) != codes.loss(obs)
    codes.eval()
    assert torch.equal(codes(obs), codes(obs))
    assert codes.loss(obs) == codes.loss(obs)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_is_hard_in_evaluation(estimator):
    codes, logits = make_codes(estimator=estimator, sample_features=True), torch.randn(5, 3, 4)
    hard = torch.nn.functional.one_hot(logits.argmax(-1), 4).float()
    assert torch.equal(codes.draw(logits, sample=False), hard)
    drawn = codes.draw(logits, sample=True)
    is_one_hot = bool(((drawn == 0) | (drawn == 1)).all())
    assert is_one_hot is not ESTIMATORS[estimator].is_relaxed


def test_drawn_codes_follow_the_softmax_of_the_logits():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(20_000, 1, 4)
    drawn = make_codes(num_factors=1).draw(logits, sample=True)
    torch.testing.assert_close(drawn.mean(0)[0], logits[0, 0].softmax(-1), atol=0.02, rtol=0)


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_loss_reaches_the_encoder_through_the_one_hot(estimator):
    """With no divergence, which would reach it without."""
    codes = make_codes(MINATAR, estimator=estimator, kl_weight=0.0)
    codes.loss(sample(MINATAR).float()).backward()
    assert encoder_gradient(codes) > 0
    assert codes.codebook.grad.abs().sum() > 0


def test_the_gradient_of_features_is_that_of_the_softmax():
    """d(sum w f)/d logits = J(p) (codebook w) / temperature, p = softmax(logits / temperature)."""
    codes = make_codes(temperature=0.7)
    logits = torch.randn(5, 3, 4, requires_grad=True)
    weight = torch.randn(6)
    (codes.embed(logits, sample=False) @ weight).sum().backward()
    p = (logits / 0.7).softmax(-1)
    arriving = torch.einsum("knd,kd->kn", codes.codebook, weight.view(3, 2))
    expected = p * (arriving - (p * arriving).sum(-1, keepdim=True)) / 0.7
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_policy_losses_reach_the_encoder_unless_stopped(kind):
    make, kwargs = KINDS[kind]
    obs = sample(FLAT)
    open_codes, stopped = make(FLAT, **kwargs), make(FLAT, policy_gradient=False, **kwargs)
    open_codes(obs).square().sum().backward()
    assert encoder_gradient(open_codes) > 0
    assert not stopped(obs).requires_grad
    stopped.loss(obs).backward()
    assert encoder_gradient(stopped) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_the_device(kind):
    make, kwargs = KINDS[kind]
    codes, obs = make(MINATAR, **kwargs), sample(MINATAR)
    with DeviceReads() as reads:
        codes.set_progress(0.5)
        batch = prepare(codes, obs, MINATAR)
        codes(batch).sum().backward()
        codes.loss(batch).backward()
    assert reads.seen == []
    codes.to("meta").loss(obs.float().to("meta")).backward()


# --- learning ---------------------------------------------------------------------------------


def clusters(number, seed=0):
    """Return noisy copies of 8 random binary pictures, and which picture each is."""
    draw = np.random.default_rng(seed)
    pictures = np.random.default_rng(7).random((8, 6, 6, 2)) < 0.3
    label = draw.integers(8, size=number)
    noise = draw.random((number, 6, 6, 2)) < 0.02
    return (pictures[label] ^ noise).astype(np.uint8), label


def mean_image_loss(train, test):
    mean = torch.as_tensor(train).float().mean(0).clamp(0.01, 0.99)
    target = torch.as_tensor(test).float()
    return -Bernoulli(mean).log_prob(target).flatten(1).sum(1).mean().item()


CLUSTERS = spaces.Box(0, 1, (6, 6, 2), np.uint8)


def test_clusters_become_codes_and_beat_the_mean_image_on_held_out_ones():
    """8 clusters in 4 * 4 codes: both factors are used, and a code tells the cluster."""
    train, _ = clusters(1000)
    test, label = clusters(400, seed=1)
    codes = GumbelCodes(CLUSTERS, 2, 4, 8, net_arch=[32])
    pretrain_codes(codes, train, num_updates=600, batch_size=64)
    codes.eval()
    metrics = codes.measure(torch.as_tensor(test).float())
    assert metrics["codes/perplexity"] > 2
    assert metrics["codes/reconstruction_loss"] < 0.5 * mean_image_loss(train, test)
    code = codes.codes(torch.as_tensor(test).float()) @ torch.tensor([4, 1])
    groups = [label[(code == value).numpy()] for value in code.unique()]
    right = sum(np.bincount(group).max() for group in groups) / len(label)
    assert right > 0.7


def test_gaussian_codes_beat_the_mean_image_on_held_out_ones():
    train, test = clusters(1000)[0], clusters(400, seed=1)[0]
    codes = GaussianCodes(CLUSTERS, 8, net_arch=[32])
    pretrain_codes(codes, train, num_updates=300, batch_size=64)
    loss = codes.eval().measure(torch.as_tensor(test).float())["codes/reconstruction_loss"]
    assert loss < 0.5 * mean_image_loss(train, test)


def test_pretraining_runs_the_schedule_from_end_to_end():
    codes = make_codes(temperature=Schedule("linear", 2.0, 0.5))
    assert codes.temperature == 2
    pretrain_codes(codes, sample(FLAT), num_updates=10)
    assert codes.temperature.item() == pytest.approx(2 - 1.5 * 0.9)
    codes.set_progress(0.0)
    assert codes.temperature == 0.5


def test_frozen_codes_stay_as_pretraining_left_them():
    codes = make_codes()
    pretrain_codes(codes, sample(FLAT), num_updates=2, freeze=True)
    assert codes.is_frozen
    assert all(parameter.grad is None for parameter in codes.parameters())
    assert not codes(sample(FLAT)).requires_grad
    other = make_codes()
    other.load_state_dict(codes.state_dict())
    assert other.is_frozen
    assert not any(parameter.requires_grad for parameter in other.parameters())


# --- algorithms -------------------------------------------------------------------------------


class Walk(gym.Env):
    """Noisy one-hots of where one stands among 6 places; to step right is rewarded."""

    observation_space = spaces.Box(-1, 2, (6,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = 0, 0
        return self.look(), {}

    def look(self):
        return np.eye(6, dtype=np.float32)[self.place] + self.np_random.normal(0, 0.1, 6).astype(
            np.float32
        ).clip(-0.5, 0.5)

    def step(self, action):
        self.steps += 1
        right = int(np.ravel(action)[0] > 0)
        self.place = min(max(self.place + 2 * right - 1, 0), 5)
        return self.look(), float(right), False, self.steps == 20, {}


class WalkByForce(Walk):
    action_space = spaces.Box(-1, 1, (1,))


def kwargs_of(make=GumbelCodes, **kwargs):
    extra = SMALL if make is GumbelCodes else {"net_arch": [8]}
    return {
        "features_extractor_class": make,
        "features_extractor_kwargs": {**extra, **kwargs},
        "net_arch": [8],
    }


def make_ppo(policy_kwargs, **kwargs):
    settings = {"n_steps": 32, "batch_size": 64, "n_epochs": 1, "seed": 0, "device": "cpu"}
    env = make_vec_env(Walk, 2, seed=0)
    return PPO("MlpPolicy", env, policy_kwargs=policy_kwargs, **{**settings, **kwargs})


def make_dqn(policy_kwargs):
    settings = {"learning_starts": 50, "buffer_size": 500, "seed": 0, "device": "cpu"}
    return DQN("MlpPolicy", Walk(), policy_kwargs=policy_kwargs, **settings)


def make_stock_sac(policy_kwargs):
    settings = {"learning_starts": 50, "buffer_size": 500, "seed": 0, "device": "cpu"}
    return SAC("MlpPolicy", WalkByForce(), policy_kwargs=policy_kwargs, **settings)


def make_gumbel_sac(policy_kwargs):
    settings = {"learning_starts": 50, "buffer_size": 500, "batch_size": 16, "device": "cpu"}
    return GumbelSAC("MlpPolicy", Walk(), policy_kwargs=policy_kwargs, seed=0, **settings)


def make_batched_sac(policy_kwargs):
    env = make_vec("Catch-v0", 4, "cpu")
    settings = {"learning_starts": 50, "buffer_size": 500, "batch_size": 16, "device": "cpu"}
    return GumbelSAC("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=0, **settings)


def make_batched(algorithm):
    def make(policy_kwargs):
        env = make_vec("Catch-v0", 8, "cpu")
        return algorithm(
            "MlpPolicy", env, n_steps=16, policy_kwargs=policy_kwargs, seed=0, device="cpu"
        )

    return make


MAKERS = {
    "ppo": make_ppo,
    "dqn": make_dqn,
    "sac": make_stock_sac,
    "gumbel_sac": make_gumbel_sac,
    "batched_sac": make_batched_sac,
    "batched_ppo": make_batched(BatchedPPO),
    "batched_reppo": make_batched(GumbelREPPO),
}


def weights(codes):
    return torch.cat([parameter.detach().clone().flatten() for parameter in codes.parameters()])


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_callback_trains_the_codes_of_any_algorithm(make, tmp_path):
    """Stopped from the policy's losses, so that nothing else moves them; `codes/*` are logged."""
    model = make(kwargs_of(policy_gradient=False))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    codes = find_codes(model.policy)
    before = [weights(part) for part in codes]
    model.learn(256, CodesCallback(gradient_steps=3, batch_size=32), log_interval=1)
    model.logger.close()
    assert all((weights(part) != old).any() for part, old in zip(codes, before, strict=True))
    assert all(parameter.grad is None for part in codes for parameter in part.parameters())
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert {"codes/loss", "codes/reconstruction_loss", "codes/kl", "codes/perplexity"} <= set(
        header
    )


def test_without_the_callback_stopped_codes_do_not_move():
    model = make_ppo(kwargs_of(policy_gradient=False))
    before = weights(model.policy.features_extractor)
    model.learn(192)
    assert torch.equal(weights(model.policy.features_extractor), before)


def test_the_policy_alone_trains_encoder_and_codebook_but_no_decoder():
    model = make_ppo(kwargs_of())
    codes = model.policy.features_extractor
    before = {name: value.detach().clone() for name, value in codes.named_parameters()}
    model.learn(192)
    moved = {n for n, value in codes.named_parameters() if (value != before[n]).any()}
    parts = {name.partition(".")[0] for name in moved}
    assert parts == {"encoder", "codebook"}


@pytest.mark.parametrize("make_codes_of", [GumbelCodes, GaussianCodes])
def test_the_auxiliary_loss_falls_beside_ppo(make_codes_of):
    model = make_ppo(kwargs_of(make_codes_of))
    obs = torch.as_tensor(model.env.reset())
    rows = [obs] + [torch.as_tensor(model.env.step([1, 1])[0]) for _ in range(19)]
    obs, codes = torch.cat(rows), model.policy.features_extractor.eval()
    before = codes.loss(obs).item()
    model.learn(64 * 12, CodesCallback(learning_rate=0.01, gradient_steps=20))
    assert codes.eval().loss(obs).item() < 0.5 * before


def test_ppo_updates_the_policy_that_acted_though_the_codes_move_between():
    """One epoch of one minibatch: its ratio is 1 exactly, unless features are drawn."""
    fixed = make_ppo(kwargs_of())
    fixed.learn(64 * 4, CodesCallback(gradient_steps=5))
    assert abs(fixed.logger.name_to_value["train/approx_kl"]) < 1e-6
    drawn = make_ppo(kwargs_of(sample_features=True), learning_rate=0.05)
    drawn.learn(64 * 4, CodesCallback(gradient_steps=5))
    assert drawn.logger.name_to_value["train/approx_kl"] > 1e-4


def test_the_temperature_follows_the_progress_of_training():
    """At the start of the last of four rollouts a quarter is left."""
    model = make_ppo(kwargs_of(temperature={"schedule": "linear", "start": 2.0, "end": 1.0}))
    model.learn(64 * 4, CodesCallback(gradient_steps=1))
    assert model.policy.features_extractor.temperature.item() == pytest.approx(1.25)


@pytest.mark.parametrize("shared", [True, False])
def test_each_extractor_of_a_policy_is_trained_once(shared):
    model = make_ppo({**kwargs_of(), "share_features_extractor": shared})
    policy = model.policy
    expected = {policy.pi_features_extractor, policy.vf_features_extractor}
    found = find_codes(policy)
    assert set(found) == expected
    assert len(found) == len(expected) == (1 if shared else 2)


def test_target_networks_follow_and_are_not_trained_themselves():
    model = make_dqn(kwargs_of())
    assert find_codes(model.policy) == [model.q_net.features_extractor]
    obs = np.stack([Walk.observation_space.sample() for _ in range(8)])
    pretrain_codes(model.policy, obs, num_updates=3)
    copy = model.q_net_target.features_extractor
    assert torch.equal(weights(copy), weights(model.q_net.features_extractor))


def test_pretraining_a_policy_makes_its_extractors_copies():
    model = make_gumbel_sac(kwargs_of())
    obs = np.stack([Walk.observation_space.sample() for _ in range(8)])
    pretrain_codes(model.policy, obs, num_updates=3, freeze=True)
    nets = (model.actor, model.critic, model.critic_target)
    first = weights(model.actor.features_extractor)
    assert all(torch.equal(weights(net.features_extractor), first) for net in nets)
    model.learn(120)
    assert all(torch.equal(weights(net.features_extractor), first) for net in nets)


# --- files ------------------------------------------------------------------------------------


def test_a_ppo_with_codes_saves_and_loads(tmp_path):
    """The frozen state too, though SB3 builds the policy anew; and learning goes on."""
    model = make_ppo(kwargs_of(temperature=Schedule("linear", 2.0, 1.0)))
    obs = np.stack([Walk.observation_space.sample() for _ in range(8)])
    pretrain_codes(model.policy, obs, num_updates=3, freeze=True)
    model.learn(64)
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=model.env, device="cpu")
    old, new = model.policy.features_extractor, loaded.policy.features_extractor
    assert torch.equal(weights(new), weights(old))
    assert new.is_frozen
    assert new.temperature == old.temperature
    actions = [m.predict(obs, deterministic=True)[0] for m in (loaded, model)]
    assert np.array_equal(*actions)
    loaded.learn(64)
    assert torch.equal(weights(new), weights(old))


def test_a_gumbel_sac_with_codes_saves_and_loads_without_pickle(tmp_path):
    model = make_gumbel_sac(kwargs_of(temperature=Schedule("linear", 2.0, 1.0)))
    model.learn(80, CodesCallback())
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, device="cpu")
    old, new = model.actor.features_extractor, loaded.actor.features_extractor
    assert torch.equal(weights(new), weights(old))
    assert not new.is_frozen
    assert new.temperature == old.temperature
    assert new.schedule == old.schedule


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_factors": 0}, "num_factors 0 of GumbelCodes must be >= 1"),
        ({"num_categories": 1}, "num_categories 1 of GumbelCodes must be >= 2"),
        ({"embedding_dim": 0}, "embedding_dim 0 of GumbelCodes must be >= 1"),
        ({"estimator": "reinforce"}, "unknown estimator 'reinforce'"),
        ({"estimator": "reinmax", "temperature": 0.5}, "temperature 0.5 of estimator 'reinmax'"),
        ({"temperature": Schedule("linear", 1.0, -1.0)}, "temperature -1.0"),
        (
            {
                "estimator": "decoupled_straight_through",
                "estimator_kwargs": {"forward_temperature": 2},
            },
            "forward_temperature 2",
        ),
        ({"kl_weight": -1.0}, "kl_weight -1.0 of GumbelCodes must be >= 0"),
        ({"likelihood": "laplace"}, "unknown likelihood 'laplace'; known: bernoulli, gaussian"),
        ({"likelihood": "bernoulli"}, r"needs values in \[0, 1\]"),
    ],
    ids=str,
)
def test_wrong_settings_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_codes(**kwargs)


def test_wrong_types_raise():
    with pytest.raises(TypeError, match="GumbelCodes takes Box observations; these are Discrete"):
        GumbelCodes(spaces.Discrete(3))
    with pytest.raises(TypeError, match="has no option 'gap'"):
        make_codes(estimator_kwargs={"gap": 1.0})
    with pytest.raises(ValueError, match="latent_dim 0 of GaussianCodes must be >= 1"):
        GaussianCodes(FLAT, 0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 must be > 0"),
        ({"learning_rate": 0.0}, "learning_rate 0.0 must be > 0"),
        ({"gradient_steps": 0}, "gradient_steps 0 must be > 0"),
    ],
)
def test_wrong_settings_of_the_callback_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CodesCallback(**kwargs)


def test_a_callback_with_nothing_to_train_raises():
    plain = make_ppo({"net_arch": [8]})
    with pytest.raises(ValueError, match="ActorCriticPolicy has no codes to train"):
        plain.learn(64, CodesCallback())
    frozen = make_ppo(kwargs_of())
    frozen.policy.features_extractor.freeze()
    with pytest.raises(ValueError, match="the GumbelCodes of ActorCriticPolicy are frozen"):
        frozen.learn(64, CodesCallback())


def test_values_that_the_likelihood_does_not_take_raise():
    env = make_vec("Catch-v0", 4, "cpu")
    kwargs = kwargs_of(likelihood="bernoulli")
    model = BatchedPPO(
        "MlpPolicy", env, normalize_observations=True, policy_kwargs=kwargs, device="cpu"
    )
    with pytest.raises(ValueError, match="normalize_observations True gives GumbelCodes values"):
        model.learn(64, CodesCallback())


def test_observations_of_another_shape_raise():
    with pytest.raises(ValueError, match=r"observations have shape \(5, 4\); needed: \[M, \*\(3,"):
        pretrain_codes(make_codes(), torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        pretrain_codes(make_codes(), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="num_updates 0 must be > 0"):
        pretrain_codes(make_codes(), torch.zeros(5, 3), num_updates=0)
