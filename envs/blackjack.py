"""Blackjack-v1: come closer to 21 than the dealer without going over."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.board import Board

STICK, HIT = 0, 1
MAX_HAND = 22
"""Cards of the longest hand: 21 aces and the card that busts it."""
MAX_DRAWS = 10
"""Cards that a dealer can draw: four aces to A A, a six, and five aces again."""


class Blackjack(TorchEnv):
    """Gymnasium's Blackjack-v1: 1 for a win, -1 for a loss, 0 for a draw, at the end of a hand.

    Sutton and Barto 2018, example 5.1; cards come from an infinite deck. An observation is the
    player's sum, the dealer's open card (1 is an ace) and whether the player has an ace that counts
    11, `MultiDiscrete([32, 11, 2])` where the original has a `Tuple`. Actions are stick and hit.

    Args:
        num_envs: B.
        max_episode_steps: None, as the original.
        natural: a win with 21 on the first two cards counts 1.5.
        sab: as in the book: 21 on the first two cards wins against all else.
        kwargs: `device` and `dtype` of `TorchEnv`.

    Raises:
        ValueError: for both options at once, as the book's rules have no such bonus.
    """

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = None,
        *,
        natural: bool = False,
        sab: bool = True,
        **kwargs: Any,
    ) -> None:
        if natural and sab:
            raise ValueError("natural=True of Blackjack has no use with sab=True: pass sab=False")
        self.natural = natural
        self.sab = sab
        super().__init__(
            num_envs,
            spaces.MultiDiscrete([32, 11, 2]),
            spaces.Discrete(2),
            max_episode_steps,
            **kwargs,
        )

    def draw(self, count: int) -> Tensor:
        """Return cards `[B, count]` int64: 1 is an ace, tens and faces are 10."""
        return (self.integers(13, count) + 1).clamp(max=10)

    def initial(self) -> State:
        """Return two cards each: the player's hand ends in its last card, after zeros."""
        cards = self.draw(4)
        empty = torch.zeros_like(cards[:, :1]).expand(-1, MAX_HAND - 2)
        return {"dealer": cards[:, :2], "player": torch.cat([empty, cards[:, 2:]], -1)}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the hands after a card to the player, or the result of a hand that stays."""
        hit = action.squeeze(-1) == HIT
        cards = self.draw(MAX_DRAWS)
        longer = torch.cat([state["player"][:, 1:], cards[:, :1]], -1)
        player = torch.where(hit.unsqueeze(-1), longer, state["player"])
        bust = _value(player)[0] > 21
        reward = torch.where(hit, -bust.float(), self._result(state, cards))
        return {"dealer": state["dealer"], "player": player}, reward, ~hit | bust

    def _result(self, state: State, cards: Tensor) -> Tensor:
        """Return what the player gets who sticks, where `cards` are the dealer's next."""
        player, dealer = state["player"], state["dealer"]
        mine = _value(player)[0]
        # The dealer stops at the first sum from 17 on, of those after 2, 3, ... cards.
        cards = torch.cat([dealer, cards], -1)
        hard, has_ace = cards.cumsum(-1)[:, 1:], (cards == 1).cumsum(-1)[:, 1:] > 0
        sums = hard + 10 * _counts_eleven(hard, has_ace)
        stop = (sums >= 17).byte().argmax(-1, keepdim=True)
        theirs = sums.gather(-1, stop).squeeze(-1)
        theirs = theirs.masked_fill(theirs > 21, 0)
        result = (mine - theirs).sign().float()
        if not self.natural and not self.sab:
            return result
        two_cards_make_21 = (mine == 21) & (player[:, -3] == 0)
        if self.natural:
            return torch.where(two_cards_make_21 & (result > 0), 1.5, result)
        return torch.where(two_cards_make_21 & (_value(dealer)[0] < 21), 1.0, result)

    def observe(self, state: State) -> Tensor:
        """Return the player's sum, the dealer's open card and the usable ace, `[B, 3]` int64."""
        total, is_soft = _value(state["player"])
        return torch.stack([total, state["dealer"][:, 0], is_soft.long()], -1)

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the table: the dealer's open card and covered one, the player's hand and sum."""
        board = Board(6, 6, "#1f6f43")
        table = (0, 0)
        board.write(table, (0.4, 0.4), "Dealer", 0.4, "white", anchor="lm")
        dealer, player = state["dealer"][0], state["player"][0]
        _draw_card(board, 0.4, 0.75, int(dealer[0]))
        _draw_card(board, 1.8, 0.75, None)
        total, is_soft = _value(state["player"])
        words = f"Player: {int(total)}{' (soft)' if bool(is_soft) else ''}"
        board.write(table, (0.4, 3.3), words, 0.4, "white", anchor="lm")
        hand = [int(card) for card in player if card > 0]
        apart = min(1.4, 4.0 / (len(hand) - 1))
        for position, card in enumerate(hand):
            _draw_card(board, 0.4 + position * apart, 3.65, card)
        return board.picture()


def _draw_card(board: Board, x: float, y: float, card: int | None) -> None:
    """Draw a card with this top left corner, face down if it is None."""
    table = (0, 0)
    color = "#28518f" if card is None else "white"
    board.box(table, (x, y), (x + 1.2, y + 1.8), color, radius=0.12, edge="#222222")
    if card is None:
        board.box(table, (x + 0.15, y + 0.15), (x + 1.05, y + 1.65), "#3f6fb5", radius=0.08)
    else:
        name = "A" if card == 1 else str(card)
        board.write(table, (x + 0.22, y + 0.25), name, 0.3, "#222222")
        board.write(table, (x + 0.6, y + 1.0), name, 0.75, "#c1272d" if card == 1 else "#222222")


def _value(hand: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of hands `[B, C]` and whether an ace in it counts 11; zeros are no cards."""
    hard = hand.sum(-1)
    is_soft = _counts_eleven(hard, (hand == 1).any(-1))
    return hard + 10 * is_soft, is_soft


def _counts_eleven(hard: Tensor, has_ace: Tensor) -> Tensor:
    """Return where an ace can be 11, given sums that count every ace as 1."""
    return has_ace & (hard + 10 <= 21)
