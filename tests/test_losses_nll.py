"""Negative log-likelihood and negative entropy: what the means run over, and that padding stays out."""

import math

import pytest
import torch
from torch import Tensor

from kit.logprobs import token_logprobs
from kit.losses import entropy_loss, nll_loss

# Two sequences: -1, -2, -6 (mean -3, sum -9) and -5 (mean -5, sum -5).
LOGPROBS = torch.tensor([[-1.0, -2.0, -6.0], [-5.0, 0.0, 0.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, False, False]])


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        ("sequence", 4.0),  # (3 + 5) / 2
        ("token", 3.5),  # (9 + 5) / 4
        ("none", 7.0),  # (9 + 5) / 2
    ],
)
def test_nll_is_averaged_as_it_says(normalize: str, expected: float) -> None:
    loss, metrics = nll_loss(LOGPROBS, MASK, normalize=normalize)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert metrics == {"nll_loss": loss.item()}


def test_nll_is_averaged_by_sequence_unless_told_otherwise() -> None:
    assert torch.equal(nll_loss(LOGPROBS, MASK)[0], nll_loss(LOGPROBS, MASK, normalize="sequence")[0])


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        ("sequence", [[-1 / 6] * 3, [-1 / 2, 0, 0]]),
        ("token", [[-1 / 4] * 3, [-1 / 4, 0, 0]]),
        ("none", [[-1 / 2] * 3, [-1 / 2, 0, 0]]),
    ],
)
def test_the_gradient_makes_counted_tokens_more_likely(normalize: str, expected: list[list[float]]) -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nll_loss(logprobs, MASK, normalize=normalize)[0], logprobs)
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_entropy_loss_is_minus_the_mean_over_sequences_of_the_token_mean() -> None:
    loss, metrics = entropy_loss(-LOGPROBS, MASK)
    assert loss.item() == pytest.approx(-4.0, abs=1e-12)  # -(3 + 5) / 2; over tokens it would be -3.5
    assert metrics == {"entropy_loss": loss.item()}


def test_a_step_down_the_entropy_loss_flattens_the_distribution() -> None:
    logits = torch.tensor([[[2.0, 0.0, -1.0]]], dtype=torch.float64, requires_grad=True)
    labels, mask = torch.zeros(1, 1, dtype=torch.long), torch.tensor([[True]])
    _, before = token_logprobs(logits, labels)
    (gradient,) = torch.autograd.grad(entropy_loss(before, mask)[0], logits)
    _, after = token_logprobs(logits - 0.1 * gradient, labels)
    assert after.item() > before.item()


@pytest.mark.parametrize("poison", [7.0, math.nan, -math.inf])
def test_masked_positions_never_matter(poison: float) -> None:
    def losses(values: Tensor) -> list[Tensor]:
        return [nll_loss(values, MASK, normalize=name)[0] for name in ("sequence", "token", "none")] + [
            entropy_loss(values, MASK)[0]
        ]

    for clean, poisoned in zip(losses(LOGPROBS), losses(torch.where(MASK, LOGPROBS, poison)), strict=True):
        assert torch.equal(clean, poisoned)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"'none', 'sequence', 'token'.*'sum'"):
        nll_loss(LOGPROBS, MASK, normalize="sum")
    empty = torch.tensor([[True, True, True], [False, False, False]])
    for loss in (nll_loss, entropy_loss):
        with pytest.raises(ValueError, match="nothing counts"):
            loss(LOGPROBS, empty)
        with pytest.raises((ValueError, TypeError)):
            loss(LOGPROBS, MASK[:1])
