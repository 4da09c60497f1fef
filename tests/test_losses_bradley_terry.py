"""The Bradley-Terry loss: values by hand, its optimum from exact preferences, and what must not change it."""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from kit.losses import bradley_terry_loss, dpo_loss


def scores(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Margins 2 - 0.5 = 1.5 and -1 - 0 = -1.
EXAMPLE = scores(2, -1), scores(0.5, 0)


def test_loss_and_metrics_are_means_over_pairs() -> None:
    loss, metrics = bradley_terry_loss(*EXAMPLE)
    # -log sigma(1.5) = log(1 + e^-1.5) = 0.2014132780 and -log sigma(-1) = log(1 + e) = 1.3132616875
    assert loss.item() == pytest.approx(0.7573374827504566, abs=1e-9)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1.5)) + math.log(1 + math.e)) / 2, abs=1e-12)
    assert metrics == {"accuracy": 0.5, "margin": 0.25}  # one of two; (1.5 - 1) / 2
    assert all(type(value) is float for value in metrics.values())


def test_a_tie_is_not_right_and_accuracy_is_of_all_pairs() -> None:
    # margins 0.25, -3, 0.5 and 0
    _, metrics = bradley_terry_loss(scores(1.25, -5, 0.5, 2), scores(1, -2, 0, 2))
    assert metrics == {"accuracy": 0.5, "margin": -0.5625}


def test_gradient_is_minus_the_probability_of_the_other_verdict() -> None:
    chosen, rejected = (tensor.clone().requires_grad_() for tensor in EXAMPLE)
    bradley_terry_loss(chosen, rejected)[0].backward()
    expected = [-1 / (1 + math.exp(1.5)) / 2, -1 / (1 + math.exp(-1)) / 2]  # -sigma(-margin), mean over two pairs
    assert chosen.grad is not None and chosen.grad.tolist() == pytest.approx(expected, abs=1e-12)
    assert rejected.grad is not None and rejected.grad.tolist() == pytest.approx([-x for x in expected], abs=1e-12)


def test_the_utilities_are_stationary_up_to_a_shift_and_neither_their_double_nor_their_mirror_is() -> None:
    """Over all ordered pairs, weighted by the exact probability that Bradley-Terry gives each verdict."""
    utilities = scores(0.3, -0.2, 0.8)
    chosen, rejected = torch.tensor(list(permutations(range(3), 2))).unbind(1)
    preferred = torch.sigmoid(utilities[chosen] - utilities[rejected])

    def gradient(candidate: Tensor) -> Tensor:
        candidate = candidate.clone().requires_grad_()
        pairs = zip(chosen.split(1), rejected.split(1), strict=True)
        losses = [bradley_terry_loss(candidate[winner], candidate[loser])[0] for winner, loser in pairs]
        return torch.autograd.grad((preferred * torch.stack(losses)).sum(), candidate)[0]

    for shift in (0.0, 7.0):
        torch.testing.assert_close(gradient(utilities + shift), torch.zeros(3).double(), rtol=0, atol=1e-12)
    assert gradient(2 * utilities).abs().max() > 1e-2
    assert gradient(-utilities).abs().max() > 1e-2


def test_dpo_is_this_loss_of_implicit_rewards() -> None:
    """beta = 1 and a reference that finds every completion certain: the implicit rewards are the log-probabilities."""
    loss, metrics = bradley_terry_loss(*EXAMPLE)
    dpo, of_dpo = dpo_loss(*EXAMPLE, scores(0, 0), scores(0, 0), beta=1.0)
    assert loss.item() == pytest.approx(dpo.item(), abs=1e-12)
    assert metrics["margin"] == of_dpo["rewards/margins"]


def test_a_huge_margin_neither_overflows_nor_loses_the_gradient() -> None:
    chosen = torch.tensor([-2000.0, 2000.0], requires_grad=True)
    loss, _ = bradley_terry_loss(chosen, torch.zeros(2))
    assert loss.item() == 1000.0  # -log sigma is 2000 and 0
    (gradient,) = torch.autograd.grad(loss, chosen)
    assert gradient.tolist() == [-0.5, 0.0]


@pytest.mark.usefixtures("_shapes_unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((scores(), scores()), r"one score a pair, \(pair,\), came \(0,\)"),  # the mean of nothing
        ((scores(1, 2), scores(0)), r"one shape, came .*rejected_scores \(1,\)"),  # would broadcast
        ((scores(1, 2)[:, None], scores(0, 0)[:, None]), r"came \(2, 1\).*logits\[:, 0\]"),  # a classifier's output
    ],
    ids=["no pairs", "one too few", "a column"],
)
def test_anything_but_one_score_a_pair_is_refused(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bradley_terry_loss(*arguments)
