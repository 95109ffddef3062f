"""Tables against Gymnasium's, entry by entry; sampling and exact evaluation against theory."""

from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.toy_text.frozen_lake import generate_random_map
from scipy import stats

from rl_gumbel.envs.cliff_walking import CliffWalking
from rl_gumbel.envs.frozen_lake import FrozenLake
from rl_gumbel.envs.tabular import TabularEnv
from rl_gumbel.envs.taxi import NUM_OBSERVATIONS, Taxi, decode, encode

LAKE, CLIFF, TAXI = (
    (FrozenLake, "FrozenLake-v1"),
    (CliffWalking, "CliffWalking-v1"),
    (Taxi, "Taxi-v4"),
)
CASES = [
    (*LAKE, {}),
    (*LAKE, {"is_slippery": False}),
    (*LAKE, {"map_name": "8x8"}),
    (*LAKE, {"map_name": "8x8", "is_slippery": False}),
    (*LAKE, {"success_rate": 0.75}),
    (*LAKE, {"success_rate": 1.0, "reward_schedule": (10, -2, -0.5)}),
    (*LAKE, {"success_rate": 0.0}),
    (*LAKE, {"desc": ["SFHFG", "FSFFF"], "reward_schedule": (1, -1, 0.25)}),
    (*LAKE, {"desc": generate_random_map(6, seed=3)}),
    (*CLIFF, {}),
    (*CLIFF, {"is_slippery": True}),
    (*TAXI, {}),
    (*TAXI, {"is_rainy": True}),
    (*TAXI, {"is_rainy": True, "rainy_probability": 0.5}),
]
EVERY_CASE = pytest.mark.parametrize(("ours", "env_id", "kwargs"), CASES)


def original(env_id: str, **kwargs):
    return gym.make(env_id, **kwargs).unwrapped


def law(outcomes) -> dict:
    """Probability of each (next state, reward, terminated) that can happen."""
    merged = Counter()
    for probability, *result in outcomes:
        merged[int(result[0]), float(result[1]), bool(result[2])] += float(probability)
    return {result: probability for result, probability in merged.items() if probability > 0}


def our_law(env: TabularEnv, state: int, action: int) -> dict:
    table = env.table
    fields = (table.probability, table.next_state, table.reward, table.terminated)
    return law(zip(*(field[state, action].tolist() for field in fields), strict=True))


# --- the tables -------------------------------------------------------------------------------


@EVERY_CASE
def test_every_entry_of_the_table_is_gymnasiums(ours, env_id, kwargs):
    env, theirs = ours(1, **kwargs), original(env_id, **kwargs)
    num_states, num_actions, _ = env.table.reward.shape
    assert (num_states, num_actions) == (len(theirs.P), len(theirs.P[0]))
    for state in range(num_states):
        for action in range(num_actions):
            expected = law(theirs.P[state][action])
            found = our_law(env, state, action)
            assert found == pytest.approx(expected, abs=1e-12), (state, action)


@EVERY_CASE
def test_episodes_start_as_gymnasiums(ours, env_id, kwargs):
    env, theirs = ours(1, **kwargs), original(env_id, **kwargs)
    np.testing.assert_allclose(env.table.initial, theirs.initial_state_distrib, atol=1e-15)


@pytest.mark.parametrize(
    ("env", "env_id"),
    [
        (FrozenLake(2), "FrozenLake-v1"),
        (FrozenLake(2, 200, map_name="8x8"), "FrozenLake8x8-v1"),
        (CliffWalking(2), "CliffWalking-v1"),
        (CliffWalking(2, is_slippery=True), "CliffWalkingSlippery-v1"),
        (Taxi(2), "Taxi-v4"),
        (Taxi(2, fickle_passenger=True), "Taxi-v4"),
    ],
)
def test_spaces_and_time_limits_are_gymnasiums(env, env_id):
    theirs = gym.make(env_id)
    assert env.observation_space == theirs.observation_space
    assert env.action_space == theirs.action_space
    assert env.max_episode_steps == gym.spec(env_id).max_episode_steps
    obs = env.reset(seed=0)
    assert (obs.shape, obs.dtype) == ((2,), torch.int64)
    step = env.step(torch.tensor([0, 1]))
    assert step.reward.dtype == torch.float32


# --- the taxi ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs", [{}, {"fickle_passenger": True}])
def test_taxi_masks_are_gymnasiums(kwargs):
    theirs = original("Taxi-v4")
    env = Taxi(1, **kwargs)
    for state in range(len(env.table.initial)):
        expected = theirs.action_mask(state % NUM_OBSERVATIONS)
        mask = env.legal({"state": torch.tensor([state])})
        assert mask.tolist() == [[expected.astype(bool).tolist()]]


def test_only_a_table_with_legal_actions_has_masks():
    assert Taxi(1).masked
    assert not FrozenLake(1).masked
    env = CliffWalking(1)
    env.reset()
    assert not env.masked
    assert env.action_mask is None


def test_a_step_of_the_taxi_returns_its_mask():
    env, theirs = Taxi(64), original("Taxi-v4")
    obs = env.reset(seed=0)
    for _ in range(20):
        expected = np.stack([theirs.action_mask(int(state)) for state in obs]).astype(bool)
        np.testing.assert_array_equal(env.action_mask[:, 0], expected)
        action = env.action_mask[:, 0].float().multinomial(1, generator=env.generator).squeeze(1)
        obs = env.step(action).obs


class Scripted:
    """Numpy's generator as the taxi uses it: one uniform number, one choice."""

    def __init__(self, uniform: float, choice: int) -> None:
        self.uniform, self.position = uniform, choice

    def random(self) -> float:
        return self.uniform

    def choice(self, options: list[int]) -> int:
        return options[self.position]


@pytest.mark.parametrize("is_rainy", [False, True])
def test_a_fickle_passenger_changes_as_gymnasiums(is_rainy, probability=0.4):
    """Every uniform number and choice that can matter is played on the original, flag on and off.

    Ours decides when the original has decided before, so their two laws are mixed.
    """
    kwargs = {"is_rainy": is_rainy, "fickle_passenger": True, "fickle_probability": probability}
    env, theirs = Taxi(1, **kwargs), original("Taxi-v4", **kwargs)
    aboard = [encode(row, column, 4, goal) for row, column, goal in np.ndindex(5, 5, 4)]
    waiting = [encode(2, 1, 0, 1), encode(0, 0, 0, 3), encode(4, 3, 3, 1)]
    theirs.reset(seed=0)
    for state in aboard + waiting:
        for action in range(6):
            played = {True: [], False: []}
            ends = np.cumsum([outcome[0] for outcome in theirs.P[state][action]])
            for chance, end in zip(np.diff(ends, prepend=0), ends, strict=True):
                for flag in (True, False):
                    for choice in range(3):
                        theirs._np_random = Scripted(end - chance / 2, choice)
                        theirs.s, theirs.fickle_step = state, flag
                        following, reward, terminated, _, _ = theirs.step(action)
                        settled = flag and not theirs.fickle_step
                        played[flag].append((chance / 3, following, reward, terminated, settled))
            moved = {
                name: [(p, s, r, t) for p, s, r, t, _ in outcomes]
                for name, outcomes in played.items()
            }
            mixed = law(
                [(probability * p, *rest) for p, *rest in moved[True]]
                + [((1 - probability) * p, *rest) for p, *rest in moved[False]]
            )
            seen = Counter()
            for (following, *rest), p in our_law(env, state, action).items():
                seen[following % NUM_OBSERVATIONS, *rest] += p
                where, before = decode(following % NUM_OBSERVATIONS), decode(state)
                is_settled = before[2] == 4 and where[:2] != before[:2]
                assert (following >= NUM_OBSERVATIONS) == is_settled
            assert seen == pytest.approx(mixed, abs=1e-12), (state, action)
            # After that move nothing is undecided: the law without the flag.
            after = our_law(env, state + NUM_OBSERVATIONS, action)
            assert min(following for following, *_ in after) >= NUM_OBSERVATIONS
            after = {(s - NUM_OBSERVATIONS, r, t): p for (s, r, t), p in after.items()}
            assert after == pytest.approx(law(moved[False]), abs=1e-12)


# --- sampling ---------------------------------------------------------------------------------


def is_plausible(counts: np.ndarray, probability: np.ndarray) -> bool:
    """Chi-square at the level 1e-4; nothing of probability 0 happened."""
    possible = probability > 0
    expected = probability[possible] * counts.sum()
    p_value = stats.chisquare(counts[possible], expected).pvalue if possible.sum() > 1 else 1.0
    return counts[~possible].sum() == 0 and p_value > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("ours", "kwargs", "state", "action"),
    [
        (FrozenLake, {}, 0, 3),
        (FrozenLake, {}, 14, 2),
        (FrozenLake, {"success_rate": 0.9}, 6, 1),
        (FrozenLake, {"success_rate": 0.0}, 6, 1),
        (CliffWalking, {"is_slippery": True}, 30, 2),
        (Taxi, {"is_rainy": True}, encode(2, 2, 1, 3), 2),
        (Taxi, {"is_rainy": True, "fickle_passenger": True}, encode(2, 2, 4, 3), 0),
        (Taxi, {}, encode(0, 4, 4, 1), 5),
    ],
)
def test_outcomes_come_with_their_probabilities(ours, kwargs, state, action, dtype):
    num_envs = 20_000
    env = ours(num_envs, dtype=dtype, **kwargs)
    env.reset(seed=1)
    states = {"state": torch.full((num_envs,), state)}
    following, reward, terminated = env.transition(states, torch.full((num_envs, 1), action))
    expected = our_law(env, state, action)
    found = Counter(
        zip(following["state"].tolist(), reward.tolist(), terminated.tolist(), strict=True)
    )
    assert set(found) <= set(expected)
    counts = np.array([found[result] for result in expected])
    assert is_plausible(counts, np.array(list(expected.values())))


@pytest.mark.parametrize(
    ("ours", "kwargs"),
    [(FrozenLake, {"desc": ["FSF", "SGS", "FFF"]}), (Taxi, {}), (Taxi, {"fickle_passenger": True})],
)
def test_episodes_start_with_their_probabilities(ours, kwargs):
    env = ours(30_000, **kwargs)
    env.reset(seed=2)
    counts = env.state["state"].bincount(minlength=len(env.table.initial)).numpy()
    assert is_plausible(counts, env.table.initial.numpy())


class Fixed(FrozenLake):
    """A lake whose uniform numbers are all the same."""

    number = 0.0

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.full((self.num_envs, *shape), self.number, dtype=self.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_extreme_uniform_numbers_draw_what_can_happen(dtype):
    """Rounded sums of probabilities must not let through what has none."""
    largest = 1 - torch.finfo(dtype).eps / 2
    env = Fixed(1, dtype=dtype, desc=["FSFS", "SFGF", "SSSS", "SSSF"])
    for number, first, left_or_right in ((0.0, 1, 0), (largest, 14, 2)):
        env.number = number
        assert env.initial()["state"].tolist() == [first]
        following, _, _ = env.transition({"state": torch.tensor([1])}, torch.tensor([[1]]))
        assert following["state"].tolist() == [left_or_right]


def test_an_episode_is_cut_at_its_limit():
    env = FrozenLake(3, is_slippery=False)
    env.reset(seed=0)
    for _ in range(99):
        step = env.step(torch.zeros(3, dtype=torch.int64))
        assert not step.ended.any()
    step = env.step(torch.zeros(3, dtype=torch.int64))
    assert step.truncated.all()
    assert step.episode_length.tolist() == [100] * 3


def test_a_walk_by_hand_along_the_cliff():
    """Over the edge first, which goes on from the start, then up, 11 times right, down."""
    env = CliffWalking(1)
    env.reset()
    for action in [1, 0, *[1] * 11]:
        assert not env.step(torch.tensor([action])).ended.any()
    step = env.step(torch.tensor([2]))
    assert step.terminated.all()
    assert (step.final_obs.item(), step.obs.item()) == (47, 36)
    assert step.episode_return.item() == -100 - 13


def test_a_cliff_has_no_time_limit():
    env = CliffWalking(1)
    env.reset()
    for _ in range(300):
        assert not env.step(torch.tensor([3])).ended.any()


@pytest.mark.parametrize("ours", [FrozenLake, CliffWalking, Taxi])
def test_tables_need_no_value_of_a_tensor(ours):
    env = ours(3, device="meta")
    env.reset(seed=0)
    step = env.step(torch.zeros(3, dtype=torch.int64, device="meta"))
    assert step.obs.device.type == "meta"
    step = env.step(torch.zeros(3, 1, env.layout.num_categories, device="meta"))
    assert step.reward.shape == (3,)


def test_a_seed_and_a_state_repeat_what_follows():
    def play(env: Taxi) -> list:
        steps = [env.step(torch.tensor([0, 1, 2, 3])) for _ in range(30)]
        return [[*step.obs.tolist(), *step.reward.tolist()] for step in steps]

    env, twin = (Taxi(4, is_rainy=True, fickle_passenger=True) for _ in range(2))
    env.reset(seed=3)
    state = env.get_state()
    first = play(env)
    twin.reset(seed=3)
    assert play(twin) == first
    env.set_state(state)
    assert play(env) == first


# --- exact evaluation -------------------------------------------------------------------------


def dynamic_programming(theirs, probs: np.ndarray, horizon: int) -> float:
    """Expected return from Gymnasium's table, forwards: where episodes are, step by step.

    `probs` `[S, A]`, or `[T, S, A]` for a policy that depends on the step.
    """
    probs = np.broadcast_to(probs, (horizon, *probs.shape[-2:]))
    states = len(theirs.P)
    flow, gain = np.zeros((states, probs.shape[-1], states)), np.zeros(probs.shape[1:])
    for state, actions in theirs.P.items():
        for action, outcomes in actions.items():
            for probability, following, reward, terminated in outcomes:
                flow[state, action, following] += probability * (not terminated)
                gain[state, action] += probability * reward
    present, total = theirs.initial_state_distrib, 0.0
    for step in range(horizon):
        taken = present[:, None] * probs[step]
        total += (taken * gain).sum()
        present = np.einsum("sa,sat->t", taken, flow)
    return float(total)


def random_policy(env: TabularEnv, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (env.observation_space.n, env.action_space.n)
    return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(-1)


@pytest.mark.parametrize(
    ("env", "horizon", "optimum"),
    [
        (FrozenLake(1), None, 0.7442),
        (FrozenLake(1, is_slippery=False), None, 1.0),
        (FrozenLake(1, 200, map_name="8x8"), None, 0.9132),
        (CliffWalking(1), 100, -13.0),
        (CliffWalking(1, is_slippery=True), 5000, -64.709),
        (Taxi(1), None, 7.93),
        (Taxi(1, is_rainy=True), None, 3.9546),
    ],
)
def test_optimal_returns_are_the_known_ones(env, horizon, optimum):
    assert env.optimal_return(horizon) == pytest.approx(
        optimum, abs=6e-4 if optimum < -13 else 6e-5
    )


@EVERY_CASE
def test_exact_returns_are_those_of_gymnasiums_tables(ours, env_id, kwargs):
    env, theirs = ours(1, **kwargs), original(env_id, **kwargs)
    for seed, horizon in ((0, 30), (1, 1), (2, 7)):
        policy = random_policy(env, seed)
        expected = dynamic_programming(theirs, policy.numpy(), horizon)
        assert env.exact_return(policy, horizon) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@EVERY_CASE
def test_the_optimal_policy_reaches_the_optimal_return(ours, env_id, kwargs):
    env, theirs, horizon = ours(1, **kwargs), original(env_id, **kwargs), 20
    actions = env.optimal_policy(horizon)
    assert actions.shape == (horizon, len(theirs.P))
    probs = np.eye(env.action_space.n)[actions.numpy()]
    best = env.optimal_return(horizon)
    assert dynamic_programming(theirs, probs, horizon) == pytest.approx(best, abs=1e-9)
    assert env.exact_return(random_policy(env, 3), horizon) <= best + 1e-9


def test_the_optimal_policy_of_the_taxi_is_legal():
    env, theirs = Taxi(1), original("Taxi-v4")
    actions = env.optimal_policy(30)
    masks = np.stack([theirs.action_mask(state) for state in range(500)]).astype(bool)
    assert masks[np.arange(500), actions.numpy()].all()


@pytest.mark.parametrize(
    "env",
    [
        FrozenLake(4000, 20, reward_schedule=(1, -1, 0.1)),
        CliffWalking(1000, 40, is_slippery=True),
        Taxi(1000, 50, is_rainy=True),
        Taxi(4000, 40, fickle_passenger=True, fickle_probability=0.9),
    ],
)
def test_exact_returns_are_the_mean_of_sampled_ones(env):
    policy = random_policy(env, 4)
    obs = env.reset(seed=5)
    first = torch.full((env.num_envs,), torch.nan)
    for _ in range(env.max_episode_steps):
        step = env.step(policy[obs].multinomial(1, generator=env.generator).squeeze(1))
        first = torch.where(step.ended & first.isnan(), step.episode_return, first)
        obs = step.obs
    standard_error = float(first.std()) / env.num_envs**0.5
    assert abs(env.exact_return(policy) - float(first.mean())) < 3 * standard_error


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FrozenLake(1, map_name="5x5"), "'5x5' of FrozenLake is not one of 4x4, 8x8"),
        (lambda: FrozenLake(1, map_name=None), "generate_random_map"),
        (lambda: FrozenLake(1, desc=["SF", "F"]), "rows of equal length"),
        (lambda: FrozenLake(1, desc=["SX"]), "of S, F, H, G"),
        (lambda: FrozenLake(1, desc=["FG"]), "with an S"),
        (lambda: FrozenLake(1, success_rate=1.5), "success_rate 1.5 of FrozenLake must be"),
        (lambda: FrozenLake(1, success_rate=0.5, is_slippery=False), "has no use with is_slippery"),
        (lambda: FrozenLake(1, reward_schedule=(1, 0)), "must be three rewards"),
        (lambda: Taxi(1, is_rainy=True, rainy_probability=-0.1), "rainy_probability -0.1 of Taxi"),
        (lambda: Taxi(1, rainy_probability=0.5), "has no use with is_rainy=False"),
        (lambda: Taxi(1, fickle_probability=0.5), "has no use with fickle_passenger=False"),
        (lambda: CliffWalking(1).optimal_return(), "give a horizon"),
        (lambda: CliffWalking(1).exact_return(torch.ones(48, 4) / 4), "give a horizon"),
        (lambda: FrozenLake(1).exact_return(torch.ones(4, 16) / 4), r"\(4, 16\) must be \(16, 4\)"),
        (lambda: FrozenLake(1).exact_return(torch.ones(16, 4)), "add up to 1"),
        (lambda: FrozenLake(1, gradients=True), "has no gradient"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# --- pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "shape", "states"),
    [
        (FrozenLake(3), (256, 256, 3), [0, 1, 5, 15]),
        (FrozenLake(3, map_name="8x8"), (512, 512, 3), [0, 9, 63]),
        (FrozenLake(3, desc=["S" + "F" * 39, "F" * 39 + "G"]), (32, 640, 3), [0, 79]),
        (CliffWalking(3), (256, 768, 3), [36, 24, 47]),
        (Taxi(3), (339, 339, 3), [encode(0, 0, 0, 1), encode(0, 0, 4, 1), encode(0, 0, 4, 2)]),
        (Taxi(3, fickle_passenger=True), (339, 339, 3), [0, 501]),
    ],
)
def test_pictures_show_the_state(env, shape, states):
    frames = [env.frame({"state": torch.tensor([state])}) for state in states]
    assert {(frame.shape, frame.dtype) for frame in frames} == {(shape, np.dtype(np.uint8))}
    assert len({frame.tobytes() for frame in frames}) == len(states)
    env.reset(seed=0)
    env.state["state"][1] = states[1]
    np.testing.assert_array_equal(env.render(1), frames[1])


def test_the_picture_shows_the_elf_in_its_tile():
    """Two states differ in the two tiles of the elf and nowhere else."""
    env = FrozenLake(1)
    before, after = (env.frame({"state": torch.tensor([state])}) for state in (1, 14))
    rows, columns = np.nonzero((before != after).any(-1))
    assert {(row // 64, column // 64) for row, column in zip(rows, columns, strict=True)} == {
        (0, 1),
        (3, 2),
    }
