"""Blackjack against Gymnasium's, card by card."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.toy_text import blackjack as original
from scipy import stats

from rl_gumbel.envs.blackjack import MAX_DRAWS, MAX_HAND, Blackjack

OPTIONS = pytest.mark.parametrize(
    "options",
    [
        {"natural": False, "sab": True},
        {"natural": False, "sab": False},
        {"natural": True, "sab": False},
    ],
)
DECKS = {
    "fair": original.deck,
    "naturals": [1, 1, 10, 10, 10],
    "long hands": [1, 1, 1, 1, 2, 6],
}


class Recorded(Blackjack):
    """Hands from any deck, which remember the cards that were drawn."""

    def __init__(self, num_envs: int, deck: list[int], **kwargs) -> None:
        super().__init__(num_envs, **kwargs)
        self.deck = torch.tensor(deck)
        self.drawn: list[torch.Tensor] = []

    def draw(self, count: int) -> torch.Tensor:
        cards = self.deck[self.integers(len(self.deck), count)]
        self.drawn.append(cards)
        return cards


class Dealt:
    """Numpy's generator as the original uses it: cards from a list, the first suit and face."""

    def __init__(self) -> None:
        self.cards: list[int] = []

    def choice(self, options: list):
        return self.cards.pop(0) if options is original.deck else options[0]


def gymnasium_hand(options: dict) -> original.BlackjackEnv:
    env = original.BlackjackEnv(**options)
    env._np_random = Dealt()
    return env


def deal(env: original.BlackjackEnv, cards: torch.Tensor) -> tuple:
    env._np_random.cards = cards.tolist()
    return env.reset()[0]


@OPTIONS
@pytest.mark.parametrize("deck", DECKS)
def test_hands_are_gymnasiums(options, deck, num_envs=100, num_steps=40):
    ours = Recorded(num_envs, DECKS[deck], **options)
    theirs = [gymnasium_hand(options) for _ in range(num_envs)]
    obs = ours.reset(seed=0)
    rows = zip(theirs, ours.drawn.pop(), strict=True)
    assert obs.tolist() == [list(deal(env, cards)) for env, cards in rows]
    ended = 0
    for _ in range(num_steps):
        action = ours.integers(2)
        step = ours.step(action)
        (fresh, cards), ours.drawn = ours.drawn, []
        for row, env in enumerate(theirs):
            env._np_random.cards = cards[row].tolist()
            expected = env.step(int(action[row]))
            assert step.final_obs[row].tolist() == list(expected[0])
            assert (float(step.reward[row]), bool(step.terminated[row])) == expected[1:3]
            now = deal(env, fresh[row]) if expected[2] else expected[0]
            assert step.obs[row].tolist() == list(now)
        assert not step.truncated.any()
        ended += int(step.terminated.sum())
    assert ended > 1000


def longest(hand: list[int], memo: dict) -> int:
    """How many cards a dealer may still draw."""
    total = original.sum_hand(hand)
    key = (sum(hand), 1 in hand)
    if total >= 17:
        return 0
    if key not in memo:
        memo[key] = 1 + max(longest([*hand, card], memo) for card in range(1, 11))
    return memo[key]


def test_no_dealer_draws_more_cards_than_there_are():
    assert max(longest([a, b], {}) for a in range(1, 11) for b in range(1, 11)) == MAX_DRAWS


def test_the_longest_dealers_hand_is_played_out(monkeypatch):
    cards = [1, 1, 1, 1, 6, 1, 1, 1, 1, 1]
    env, theirs = Blackjack(1), gymnasium_hand({"sab": True})
    theirs._np_random.cards = [1, 1, 10, 9, *cards]
    theirs.reset()
    monkeypatch.setattr(env, "draw", lambda count: torch.tensor([[1, 1, 10, 9, *cards][:count]]))
    env.reset()
    monkeypatch.setattr(env, "draw", lambda count: torch.tensor([cards[:count]]))
    step = env.step(torch.tensor([0]))
    assert step.reward.tolist() == [theirs.step(0)[1]] == [1.0]
    assert original.sum_hand(theirs.dealer) == 17


def test_a_hand_holds_as_many_aces_as_can_be(monkeypatch):
    env = Blackjack(1)
    monkeypatch.setattr(env, "draw", lambda count: torch.ones(1, count, dtype=torch.int64))
    env.reset()
    for count in range(3, MAX_HAND + 1):
        step = env.step(torch.tensor([1]))
        total = count + 10 if count <= 11 else count
        assert step.final_obs.tolist() == [[total, 1, int(count <= 11)]]
        assert step.terminated.tolist() == [count == MAX_HAND]
    assert step.reward.tolist() == [-1.0]


def test_cards_are_those_of_an_infinite_deck():
    env = Blackjack(2000)
    env.reset(seed=0)
    counts = env.draw(10).flatten().bincount(minlength=11)
    assert counts[0] == 0
    expected = np.array([1 / 13] * 9 + [4 / 13]) * 20_000
    assert stats.chisquare(counts[1:].numpy(), expected).pvalue > 1e-4


def test_spaces_are_gymnasiums_side_by_side():
    env, theirs = Blackjack(2), gym.make("Blackjack-v1")
    parts = theirs.observation_space.spaces
    assert env.observation_space == spaces.MultiDiscrete([part.n for part in parts])
    assert env.action_space == theirs.action_space
    assert env.max_episode_steps is gym.spec("Blackjack-v1").max_episode_steps is None
    assert (theirs.unwrapped.natural, theirs.unwrapped.sab) == (env.natural, env.sab)
    obs = env.reset(seed=0)
    assert (obs.shape, obs.dtype) == ((2, 3), torch.int64)


def test_blackjack_needs_no_value_of_a_tensor():
    env = Blackjack(3, device="meta", natural=True, sab=False)
    env.reset()
    assert env.step(torch.zeros(3, dtype=torch.int64, device="meta")).obs.shape == (3, 3)


def test_a_bonus_that_the_book_does_not_have_is_refused():
    with pytest.raises(ValueError, match="natural=True of Blackjack has no use with sab=True"):
        Blackjack(1, natural=True, sab=True)


def test_pictures_show_the_hands_but_not_the_covered_card():
    def frame(dealer: list[int], player: list[int]) -> np.ndarray:
        hand = [0] * (MAX_HAND - len(player)) + player
        return Blackjack(1).frame(
            {"dealer": torch.tensor([dealer]), "player": torch.tensor([hand])}
        )

    shown = frame([1, 10], [1, 6])
    assert (shown.shape, shown.dtype) == ((384, 384, 3), np.uint8)
    np.testing.assert_array_equal(frame([1, 3], [1, 6]), shown)
    assert (frame([10, 10], [1, 6]) != shown).any()
    assert (frame([1, 10], [1, 7]) != shown).any()
    assert (frame([1, 10], [1, 6, 10]) != shown).any()
    assert frame([1, 10], [1] * MAX_HAND).shape == shown.shape
