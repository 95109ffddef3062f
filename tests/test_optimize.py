"""Optimiser steps: what `descend` does beside what torch does by itself."""

import pytest
import torch
from torch import nn

from rl_gumbel.algorithms.optimize import descend, is_traceable, step_by


@pytest.mark.parametrize("max_norm", [None, 0.01])
def test_a_fused_step_on_channels_last_images_is_the_plain_one(max_norm):
    """Their gradient comes channels last, which fused Adam would read in the order of memory."""
    images = torch.randn(2, 6, 6, 3).permute(0, 3, 1, 2)
    plain, fused = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    fused.load_state_dict(plain.state_dict())
    ours = torch.optim.Adam(fused.parameters(), lr=0.1, fused=True)
    theirs = torch.optim.Adam(plain.parameters(), lr=0.1)
    for _ in range(3):
        norm, _ = descend(ours, fused(images).square().sum(), max_norm)
        theirs.zero_grad()
        plain(images).square().sum().backward()
        expected = nn.utils.clip_grad_norm_(plain.parameters(), max_norm or torch.inf)
        theirs.step()
        torch.testing.assert_close(norm, expected)
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_frozen_or_unused_stays_as_it_is():
    used, unused, frozen = (nn.Parameter(torch.ones(2), requires_grad=i < 2) for i in range(3))
    optimizer = torch.optim.Adam([used, unused, frozen], lr=0.1)
    norm, _ = descend(optimizer, (3 * used * frozen).sum(), 1.0)
    assert norm.item() == pytest.approx(18**0.5)
    assert used.grad.tolist() == pytest.approx([0.5**0.5] * 2, rel=1e-5)
    assert used.tolist() == pytest.approx([0.9, 0.9])
    assert unused.tolist() == frozen.tolist() == [1, 1]


@pytest.mark.parametrize("is_finite", [True, False])
def test_the_step_that_is_compiled_is_that_of_adam_or_none(is_finite, monkeypatch):
    """After a first step of its own, on the same moments; a rate that is a tensor."""
    pairs = []
    for rate in (0.1, torch.tensor(0.1)):
        parameters = [nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.ones(()))]
        optimizer = torch.optim.Adam(parameters, lr=rate, betas=(0.8, 0.9), eps=0.1, fused=True)
        pairs.append((parameters, optimizer))
    assert all(is_traceable(optimizer) for _, optimizer in pairs)
    for number, gradient in enumerate([3.0, -1.0, 0.5 if is_finite else torch.nan, 2.0]):
        flag = torch.tensor(bool(torch.tensor(gradient).isfinite()))
        for compiling, (parameters, optimizer) in enumerate(pairs):
            # What was not used has no gradient.
            gradients = [torch.tensor([gradient, 1.0]), None]
            monkeypatch.setattr(
                torch.compiler, "is_compiling", lambda now=compiling and number: bool(now)
            )
            step_by(optimizer, parameters, gradients, flag)
    (plain, one), (traced, other) = pairs
    torch.testing.assert_close(traced, plain)
    torch.testing.assert_close(other.state[traced[0]], one.state[plain[0]])
    assert one.state[plain[0]]["step"] == (4 if is_finite else 3)
    assert traced[1] == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.Adam(parameters),
        lambda parameters: torch.optim.Adam(parameters, fused=True, weight_decay=0.1),
        lambda parameters: torch.optim.Adam(parameters, fused=True, amsgrad=True),
        lambda parameters: torch.optim.AdamW(parameters, fused=True),
    ],
)
def test_other_optimisers_are_not_compiled(make):
    assert not is_traceable(make([nn.Parameter(torch.ones(2))]))
