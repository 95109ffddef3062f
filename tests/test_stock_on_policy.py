"""Unmodified PPO, A2C, TRPO and MaskablePPO act and learn as ever, and one can differentiate."""

import copy
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.torch_layers import CombinedExtractor
from tiny_envs import Tiny, TinyDict
from torch import Tensor

from rl_gumbel import GumbelActorCriticPolicy, check_stock, stock_kwargs
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.estimators import ESTIMATORS

sb3_contrib = pytest.importorskip("sb3_contrib")
from rl_gumbel import MaskableGumbelActorCriticPolicy  # noqa: E402

MASKABLE = sb3_contrib.MaskablePPO
POLICIES = {
    PPO: GumbelActorCriticPolicy,
    A2C: GumbelActorCriticPolicy,
    sb3_contrib.TRPO: GumbelActorCriticPolicy,
    MASKABLE: MaskableGumbelActorCriticPolicy,
}
SPACES = [spaces.Discrete(3), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)]
SHIFTED = [spaces.Discrete(3, start=5), spaces.MultiDiscrete([3, 2], start=[-1, 4])]
EVERY_ALGORITHM = pytest.mark.parametrize("algorithm", list(POLICIES), ids=lambda a: a.__name__)
EVERY_SPACE = pytest.mark.parametrize("space", SPACES, ids=str)
EVERY_POLICY = pytest.mark.parametrize(
    "policy_class", [GumbelActorCriticPolicy, MaskableGumbelActorCriticPolicy]
)


class TinyMasked(Tiny):
    """Forbids the first category of every factor, and refuses it."""

    def step(self, action: Any) -> Any:
        assert (np.asarray(action) != 0).all()
        return super().step(action)

    def action_masks(self) -> np.ndarray:
        sizes = {
            spaces.Discrete: lambda space: [space.n],
            spaces.MultiDiscrete: lambda space: space.nvec,
            spaces.MultiBinary: lambda space: [2] * space.n,
        }[type(self.action_space)](self.action_space)
        return np.concatenate([np.arange(size) > 0 for size in sizes])


def build(algorithm: Any, env: Any, policy: Any = None, **policy_kwargs: Any) -> Any:
    """A small model with our policy, unless it names another."""
    kwargs = {"n_steps": 32, "seed": 0, "policy_kwargs": {"net_arch": [16], **policy_kwargs}}
    if algorithm is not A2C:
        kwargs["batch_size"] = 16
    return algorithm(policy or POLICIES[algorithm], env, **stock_kwargs(env, algorithm, **kwargs))


def learn(model: Any, steps: int) -> None:
    """Train, with masks where the algorithm takes and the environment has them."""
    if isinstance(model, MASKABLE):
        model.learn(steps, use_masking=model.env.has_attr("action_masks"))
    else:
        model.learn(steps)


def build_policy(policy_class: Any, space: Any, **kwargs: Any) -> Any:
    """A policy with logits far from uniform, so that a wrong formula shows."""
    torch.manual_seed(0)
    policy = policy_class(Tiny.observation_space, space, lambda _: 1e-3, net_arch=[8], **kwargs)
    torch.nn.init.normal_(policy.action_net.weight)
    return policy


def parameters(model: Any) -> Tensor:
    return torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()


@pytest.mark.parametrize(
    ("algorithm", "env_class"), [*((a, Tiny) for a in POLICIES), (MASKABLE, TinyMasked)]
)
@EVERY_SPACE
def test_stock_algorithm_learns_as_with_its_own_policy(algorithm, env_class, space):
    """To the last bit: same seed, same parameters after training; masks honoured by MaskablePPO."""

    def trained(policy: Any) -> Tensor:
        model = build(algorithm, env_class(space), policy)
        before = parameters(model)
        learn(model, 96)
        assert not torch.equal(parameters(model), before)
        return parameters(model)

    assert torch.equal(trained(POLICIES[algorithm]), trained("MlpPolicy"))


@EVERY_ALGORITHM
@pytest.mark.parametrize("env_id", ["CartPole-v1", *SPACES, *SHIFTED], ids=str)
def test_stock_algorithm_trains_saves_and_loads(algorithm, env_id, tmp_path):
    """The tiny environment checks that every action is in its space, the start included."""
    env = gym.make(env_id) if isinstance(env_id, str) else Tiny(env_id)
    model = build(algorithm, env, temperature=0.7)
    check_stock(model)
    learn(model, 64)
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", env=env)
    assert loaded.policy.estimation.temperature == 0.7
    obs = np.random.default_rng(0).uniform(-1, 1, (30, *model.observation_space.shape))
    expected, _ = model.predict(obs, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)
    assert all(model.action_space.contains(action) for action in expected)


@EVERY_POLICY
@pytest.mark.parametrize("space", [*SPACES, *SHIFTED], ids=str)
def test_factored_form_is_the_same_distribution(policy_class, space):
    """What `rsample` draws from has the log-probability, entropy and KL of SB3's distribution."""
    policy = build_policy(policy_class, space)
    with torch.no_grad():
        stock = policy.get_distribution(torch.randn(40, 3))
        factored = stock.factored()
        actions = stock.sample()
        index = policy.layout.to_index(actions)
        torch.testing.assert_close(factored.log_prob(index), stock.log_prob(actions))
        # MultiDiscrete and MultiBinary actions come back from SB3's buffer as floats.
        torch.testing.assert_close(factored.log_prob(index), stock.log_prob(actions.float()))
        torch.testing.assert_close(factored.entropy(), stock.entropy())
        assert torch.equal(policy.layout.to_index(stock.mode()), factored.mode)


@EVERY_SPACE
def test_kl_divergence_of_sb3_takes_the_distribution(space):
    """TRPO calls it with a shallow copy; the factored form is the oracle."""
    one, two = (build_policy(GumbelActorCriticPolicy, space) for _ in range(2))
    torch.nn.init.normal_(two.action_net.weight)
    obs = torch.randn(40, 3)
    p, q = one.get_distribution(obs), two.get_distribution(obs)
    # For MultiBinary SB3 leaves the sum over bits to the caller.
    kl = kl_divergence(copy.copy(p), q).reshape(40, -1).sum(1)
    torch.testing.assert_close(kl, p.factored().kl(q.factored()))
    assert (kl > 0).all()


@EVERY_POLICY
@EVERY_SPACE
def test_gradient_reaches_the_policy_through_the_one_hot(policy_class, space):
    """Plain straight-through is exact for a linear loss: the gradient of the probabilities."""
    policy = build_policy(policy_class, space, estimator="straight_through")
    obs = torch.randn(20, 3)
    distribution = policy.get_distribution(obs)
    sample = distribution.rsample()
    weight = torch.randn(sample.one_hot.shape[1:])
    actor = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]
    gradients = torch.autograd.grad((weight * sample.one_hot).sum(), actor)
    probs = policy.get_distribution(obs).factored().probs
    expected = torch.autograd.grad((weight * probs).sum(), actor)
    torch.testing.assert_close(gradients, expected)
    assert all(bool((gradient != 0).any()) for gradient in gradients)
    assert torch.equal(sample.one_hot.argmax(-1), sample.index)


@EVERY_POLICY
@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_rsample_uses_the_estimator_of_the_policy(policy_class, estimator):
    """The same generator gives the sample of the plain function."""
    options = {"num_samples": 2} if estimator == "gumbel_rao" else {}
    policy = build_policy(
        policy_class,
        SPACES[1],
        estimator=estimator,
        temperature=1.5,
        estimator_kwargs=options,
    )
    distribution = policy.get_distribution(torch.randn(20, 3))
    sample = distribution.rsample(generator=torch.Generator().manual_seed(1))
    factored: FactoredCategorical = distribution.factored()
    expected = ESTIMATORS[estimator](
        factored.logits,
        mask=factored.mask,
        temperature=1.5,
        generator=torch.Generator().manual_seed(1),
        **options,
    )
    torch.testing.assert_close(sample.one_hot, expected.one_hot)


@EVERY_SPACE
@pytest.mark.parametrize("as_array", [True, False])
def test_masks_are_honoured_everywhere(space, as_array):
    """Sampling, mode, log-probability and entropy are SB3's; `rsample` draws from the same."""
    policy = build_policy(MaskableGumbelActorCriticPolicy, space)
    mask = np.tile(TinyMasked(space).action_masks(), (200, 1))
    allowed = mask if as_array else torch.as_tensor(mask)
    distribution = policy.get_distribution(torch.randn(200, 3), allowed)
    factored, actions = distribution.factored(), distribution.sample()
    assert (actions != 0).all()
    assert (distribution.mode() != 0).all()
    torch.testing.assert_close(
        factored.log_prob(actions.view(200, -1)), distribution.log_prob(actions)
    )
    torch.testing.assert_close(factored.entropy(), distribution.entropy())

    sample = distribution.rsample()
    assert (sample.index != 0).all()
    logits_grad = torch.autograd.grad(sample.one_hot.square().sum(), distribution.action_logits)[0]
    assert logits_grad.isfinite().all()
    assert (logits_grad[torch.as_tensor(~mask)] == 0).all()


def test_masks_do_not_stay_for_the_next_observations():
    """SB3 keeps one distribution per policy; `apply_masking(None)` lifts the mask as well."""
    policy = build_policy(MaskableGumbelActorCriticPolicy, SPACES[0])
    obs, mask = torch.randn(1000, 3), np.tile([False, True, True], (1000, 1))
    policy.get_distribution(obs, mask)
    distribution = policy.get_distribution(obs)
    assert (distribution.rsample().index == 0).any()
    distribution.apply_masking(mask)
    distribution.apply_masking(None)
    assert (distribution.rsample().index == 0).any()


def test_rsample_names_a_row_with_every_action_masked():
    policy = build_policy(MaskableGumbelActorCriticPolicy, SPACES[0])
    distribution = policy.get_distribution(torch.randn(2, 3), np.array([[1, 1, 1], [0, 0, 0]]))
    with pytest.raises(ValueError, match=r"every category is masked in row \[1, 0\]"):
        distribution.rsample()


@EVERY_POLICY
def test_policy_alone_saves_and_loads_its_settings(policy_class, tmp_path):
    """SB3's `policy.load` knows only what `_get_constructor_parameters` returns."""
    settings = {
        "estimator": "gumbel_rao",
        "temperature": 0.3,
        "estimator_kwargs": {"num_samples": 3},
    }
    saved = build_policy(policy_class, SPACES[1], share_features_extractor=False, **settings)
    saved.save(tmp_path / "policy.pt")
    loaded = policy_class.load(tmp_path / "policy.pt", device="cpu")
    assert vars(loaded.estimation) == settings
    assert not loaded.share_features_extractor
    obs = np.random.default_rng(0).uniform(-1, 1, (30, 3))
    expected, _ = saved.predict(obs, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)


@EVERY_POLICY
@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([[2, 3]]), spaces.MultiBinary([2, 2]), spaces.Box(0, 1, (2,))]
)
def test_other_action_spaces_are_refused(policy_class, space):
    """SB3 would build a wrong network for a shaped MultiDiscrete."""
    with pytest.raises(TypeError, match="is not supported"):
        policy_class(Tiny.observation_space, space, lambda _: 1e-3)


@EVERY_ALGORITHM
def test_dict_observations_train(algorithm):
    model = build(algorithm, TinyDict(SPACES[1]), features_extractor_class=CombinedExtractor)
    before = parameters(model)
    learn(model, 32)
    assert not torch.equal(parameters(model), before)


@EVERY_ALGORITHM
def test_stock_kwargs_add_nothing(algorithm):
    """These algorithms need nothing; the user's own arguments come back."""
    assert stock_kwargs(Tiny(SPACES[0]), algorithm, gamma=0.9) == {"gamma": 0.9}


def test_without_sb3_contrib_the_maskable_policy_says_what_to_install():
    """In a fresh interpreter that cannot import it; the other policies work there."""
    code = (
        "import sys; sys.modules['sb3_contrib'] = None\n"
        "from rl_gumbel import GumbelActorCriticPolicy\n"
        "from rl_gumbel import MaskableGumbelActorCriticPolicy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip().endswith(
        'MaskableGumbelActorCriticPolicy needs sb3-contrib: pip install "rl-gumbel[contrib]"'
    )
