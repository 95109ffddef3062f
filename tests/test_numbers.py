"""Infinities and NaNs, of environments and of gradients, in every algorithm."""

import math

import pytest
import torch
from faulty_envs import Faulty, FaultyTorch
from stable_baselines3.common.vec_env import DummyVecEnv

from rl_gumbel.algorithms import ALGORITHMS
from rl_gumbel.algorithms.numbers import HUGE_REWARD, MAX_SKIPPED, Record, RewardWatch, measure
from rl_gumbel.faults import EnvError, NumericalError

SETTINGS = {
    "sac": {"learning_starts": 8, "batch_size": 4, "buffer_size": 400},
    "reppo": {"n_steps": 6, "n_epochs": 1, "num_minibatches": 2},
    "shac": {"n_steps": 6, "n_epochs": 1, "num_minibatches": 2},
    "ppo": {"n_steps": 6, "n_epochs": 1, "num_minibatches": 2},
}
EVERY = pytest.mark.parametrize("algo", ALGORITHMS)


def build(algo, env, **kwargs):
    policy = "MultiInputPolicy" if getattr(env, "keyed", False) else "MlpPolicy"
    settings = {**SETTINGS[algo], **kwargs}
    return ALGORITHMS[algo](
        policy, env, seed=0, device="cpu", policy_kwargs={"net_arch": [8]}, **settings
    )


def weights(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def chosen(model, time, env):
    """The category that was chosen at a step, counted from 1."""
    if hasattr(model, "rollout"):
        return int(model.rollout.index[(time - 1) % model.n_steps, env, 0])
    return int(model.replay_buffer.store["index"][time - 1, env, 0])


# --- environments -----------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("where", "what"), [("reward", "reward"), ("state", "observation")])
def test_what_is_not_finite_is_named_with_environment_step_and_action(algo, value, where, what):
    model = build(algo, FaultyTorch(4, where, at=15, env=2, value=value))
    with pytest.raises(NumericalError) as caught:
        model.learn(4 * 60)
    action = chosen(model, 15, 2)
    assert str(caught.value) == (
        f"environment 2: {what} is {value} at step 60 of training, after action {action}"
    )


@EVERY
def test_a_last_observation_counts_too(algo):
    """The episode is cut in the same step, so no action is ever chosen on it."""
    model = build(algo, FaultyTorch(3, "state", at=8, env=1))
    with pytest.raises(NumericalError) as caught:
        model.learn(3 * 40)
    action = chosen(model, 8, 1)
    assert str(caught.value) == (
        f"environment 1: last observation is nan at step 24 of training, after action {action}"
    )


@EVERY
def test_the_weights_never_see_it(algo):
    """The rollout is refused before it is learned from, and updates without finite gradients."""
    model = build(algo, FaultyTorch(4, "state", at=15, env=2))
    with pytest.raises(NumericalError):
        model.learn(4 * 60)
    assert all(value.isfinite().all() for value in weights(model).values())


@EVERY
def test_a_state_without_an_allowed_action_is_named(algo):
    model = build(algo, FaultyTorch(4, "mask", at=9, env=3))
    with pytest.raises(EnvError) as caught:
        model.learn(4 * 40)
    action = chosen(model, 9, 3)
    assert str(caught.value) == (
        "environment 3: the mask allows no action of factor 0 at step 36 of training, after "
        f"action {action}"
    )


@pytest.mark.parametrize("algo", ["reppo", "ppo"])
def test_the_key_of_an_observation_is_named(algo):
    env = DummyVecEnv([lambda: Faulty(keyed=True), lambda: Faulty("obs", at=3, keyed=True)])
    model = ALGORITHMS[algo]("MultiInputPolicy", env, device="cpu", **SETTINGS[algo])
    message = r"environment 1: observation 'x' is nan at step 6 of training, after action [012]"
    with pytest.raises(NumericalError, match=message):
        model.learn(100)


def test_finite_numbers_of_any_size_pass():
    """Largest floats: their difference and their sum overflow."""
    record = Record(
        {"": torch.tensor([[[3e38]], [[-3e38]]])},
        torch.tensor([[-2.0]]),
        torch.zeros(1, 1, 1),
        torch.tensor([[[[True, False]]], [[[False, True]]]]),
        {"": torch.tensor([[[1e300]]], dtype=torch.float64)},
        lambda row, env: row,
    )
    assert measure(record).tolist() == [1, 2, 1]


# --- nonfinite: reset and zero ----------------------------------------------------------------


def play(policy, where, at=2, steps=4):
    """Environment 1 of two, with actions of 1: a reward of 0.1."""
    env = FaultyTorch(2, where, at=at, env=1, limit=None)
    env.nonfinite = policy
    env.reset(0)
    return env, [env.step(torch.ones(2, dtype=torch.int64)) for _ in range(steps)]


@pytest.mark.parametrize("where", ["reward", "state"])
def test_reset_cuts_the_episode_before_the_step(where):
    _, steps = play("reset", where)
    assert [step.obs[1, 0].item() for step in steps] == [1, 0, 1, 2]
    assert [step.final_obs[1, 0].item() for step in steps] == [1, 1, 1, 2]
    torch.testing.assert_close(
        torch.stack([step.reward[1] for step in steps]), torch.tensor([0.1, 0.0, 0.1, 0.1])
    )
    assert [step.truncated[1].item() for step in steps] == [False, True, False, False]
    assert not any(step.terminated.any() for step in steps)
    assert [step.repaired.tolist() for step in steps] == [
        [False, False], [False, True], [False, False], [False, False]
    ]  # fmt: skip
    assert [step.episode_length[1].item() for step in steps] == [1, 2, 1, 2]


class Persistent(FaultyTorch):
    persistent = frozenset({"count"})


def test_reset_starts_anew_what_episodes_hand_on_too():
    env = Persistent(2, "state", at=2, env=1, limit=None)
    env.nonfinite = "reset"
    env.reset(0)
    steps = [env.step(torch.ones(2, dtype=torch.int64)) for _ in range(3)]
    assert [step.obs[1, 0].item() for step in steps] == [1, 0, 1]


@pytest.mark.parametrize("policy", ["reset", "zero"])
def test_the_other_environments_go_on_as_without_it(policy):
    _, steps = play(policy, "state")
    assert [step.obs[0, 0].item() for step in steps] == [1, 2, 3, 4]
    assert not any(step.ended[0] for step in steps)


def test_zero_makes_a_reward_zero_and_goes_on():
    _, steps = play("zero", "reward")
    torch.testing.assert_close(
        torch.stack([step.reward[1] for step in steps]), torch.tensor([0.1, 0.0, 0.1, 0.1])
    )
    assert [step.obs[1, 0].item() for step in steps] == [1, 2, 3, 4]
    assert not any(step.ended.any() for step in steps)


def test_zero_makes_an_observation_zero_for_as_long_as_it_lasts():
    _, steps = play("zero", "state")
    assert [step.obs[1].tolist() for step in steps] == [[1, 1], [0, 1], [0, 1], [0, 1]]
    assert [step.repaired[1].item() for step in steps] == [False, True, True, True]


@EVERY
@pytest.mark.parametrize("policy", ["reset", "zero"])
def test_training_goes_on_and_repairs_are_counted(algo, policy):
    env = FaultyTorch(4, "reward", at=5, env=2)
    env.nonfinite = policy
    model = build(algo, env).learn(4 * 30)
    assert model.num_timesteps >= 4 * 30
    assert model.repaired_steps == 1
    assert model.skipped_updates == 0


def test_an_unknown_policy_is_refused():
    env = FaultyTorch(1)
    with pytest.raises(ValueError, match=r"nonfinite 'ignore' must be one of \('raise', 'reset'"):
        env.nonfinite = "ignore"


# --- gradients --------------------------------------------------------------------------------


@EVERY
@pytest.mark.filterwarnings("ignore:rewards of:RuntimeWarning")
def test_updates_without_a_finite_gradient_stop_the_training_with_the_weights_from_before(algo):
    """A reward of 1e30 is finite, and its square is not."""
    env = FaultyTorch(4, "reward", at=1, env=0, value=1e30, limit=None)
    env.constant = lambda values: torch.tensor([1e30] * 3)  # from then on, of any action
    settings = {} if algo == "sac" else {"n_epochs": 40, "num_minibatches": 1}
    model = build(algo, env, **settings, ent_coef=0.0)
    before = weights(model)
    with pytest.raises(NumericalError, match=f"not finite in {MAX_SKIPPED} updates in a row"):
        model.learn(4 * 200)
    assert all(value.isfinite().all() for value in weights(model).values())
    optimizers = [value for name, value in vars(model.policy).items() if "optimizer" in name]
    optimizers += [
        module.optimizer for module in model.policy.children() if hasattr(module, "optimizer")
    ]
    moments = [
        value for some in optimizers if isinstance(some, torch.optim.Optimizer)
        for state in some.state.values() for value in state.values()
    ]  # fmt: skip
    assert moments and all(value.isfinite().all() for value in moments)
    assert model.skipped_updates >= MAX_SKIPPED
    critic = [name for name in before if name.startswith("critic.")]
    assert all(torch.equal(before[name], weights(model)[name]) for name in critic)


def test_huge_rewards_are_warned_of_once():
    watch = RewardWatch()
    watch.see(HUGE_REWARD)
    with pytest.warns(RuntimeWarning, match=r"rewards of 2e\+06: values are learned"):
        watch.see(2e6)
    watch.see(3e6)  # an error, if it warned
