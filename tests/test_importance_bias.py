"""How far each correction's expected gradient is from the policy gradient, by summing over all that may be sampled."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from kit.importance import (
    CISPO,
    GSPO,
    IMPORTANCE,
    M2PO,
    TIS,
    DecoupledPPO,
    IcePop,
    Importance,
    NoCorrection,
    PPOClip,
)
from kit.losses import grpo_loss


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# One token of three. With ratios rho = 2.5, 1, 0.4, and weights w on log pi, the expected gradient in the logits is
# v - sum(v) pi, v = mu w A. The policy gradient has w = rho: v = pi A = (0.5, -0.6, 0.1), which sums to 0.
POLICY, SAMPLER, ADVANTAGES = vector(0.5, 0.3, 0.2), vector(0.2, 0.3, 0.5), vector(1.0, -2.0, 0.5)
EXACT = [0.5, -0.6, 0.1]


def expected_gradient(correction: Importance, sampler: Tensor = SAMPLER, prox: Tensor | None = None) -> Tensor:
    """Of minus the loss, over the sampler, in the policy's logits."""
    logits, total = POLICY.log().requires_grad_(), torch.zeros((), dtype=torch.float64)
    for token in range(3):
        logprob = logits.log_softmax(-1)[token].view(1, 1)
        loss, _ = grpo_loss(
            logprob, sampler[token].log().view(1, 1), ADVANTAGES[[token]], torch.tensor([[True]]),
            importance=correction, prox_logprobs=None if prox is None else prox[token].log().view(1, 1),
        )  # fmt: skip
        total = total - sampler[token] * loss
    return torch.autograd.grad(total, logits)[0]


UNCAPPED = [TIS(100.0), CISPO(100.0), IcePop(0.0, 100.0), PPOClip(100.0), GSPO(100.0, 100.0), M2PO(100.0),
            DecoupledPPO()]  # fmt: skip


@pytest.mark.parametrize("correction", UNCAPPED, ids=repr)
def test_without_a_cap_one_token_is_corrected_exactly(correction: Importance) -> None:
    assert expected_gradient(correction).tolist() == pytest.approx(EXACT, abs=1e-12)


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        # v = mu A = (0.2, -0.6, 0.25), sum -0.15
        (NoCorrection(), [0.275, -0.555, 0.28]),
        # w = 2, 1, 0.4: v = (0.4, -0.6, 0.1), sum -0.1
        (TIS(2.0), [0.45, -0.57, 0.12]),
        (CISPO(2.0), [0.45, -0.57, 0.12]),
        # w = 2.5, 1, 0: v = (0.5, -0.6, 0), sum -0.1
        (IcePop(0.5, 5.0), [0.55, -0.57, 0.02]),
        # w = 0, 1, 0: v = (0, -0.6, 0), sum -0.6
        (IcePop(0.5, 2.0), [0.3, -0.42, 0.12]),
        (M2PO(bound=math.log(2)), [0.3, -0.42, 0.12]),  # log 2.5 and -log 0.4 are both beyond log 2
        # w = 0, for it is good and 2.5 times likelier already, 1, 0.4: v = (0, -0.6, 0.1), sum -0.5
        (PPOClip(0.2), [0.25, -0.45, 0.2]),
        (GSPO(0.2, 0.2), [0.25, -0.45, 0.2]),  # of one token
    ],
    ids=repr,
)
def test_the_bias_of_a_bounded_correction_by_hand(correction: Importance, expected: list[float]) -> None:
    assert expected_gradient(correction).tolist() == pytest.approx(expected, abs=1e-12)


def test_decoupled_ppo_is_biased_only_where_it_clips_around_the_recent_policy() -> None:
    prox = vector(0.4, 0.3, 0.3)  # pi / pi_prox = 1.25, 1, 0.667
    assert expected_gradient(DecoupledPPO(0.3), prox=prox).tolist() == pytest.approx(EXACT, abs=1e-12)
    # The first token, good, is clipped: v = (0, -0.6, 0.1) as with PPO's clip.
    assert expected_gradient(DecoupledPPO(0.2), prox=prox).tolist() == pytest.approx([0.25, -0.45, 0.2], abs=1e-12)


@pytest.mark.parametrize("name", sorted(IMPORTANCE))
def test_on_fresh_samples_every_correction_is_exact(name: str) -> None:
    assert expected_gradient(IMPORTANCE[name](), sampler=POLICY).tolist() == pytest.approx(EXACT, abs=1e-12)


# Two tokens of three: row 0 holds the logits of the first, row 1 + i those of the second after the first was i.
GENERATOR = torch.Generator().manual_seed(3)
LOGITS, STALE = (torch.randn(4, 3, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
STALE = LOGITS + 0.5 * STALE
REWARDS = torch.randn(3, 3, generator=GENERATOR, dtype=torch.float64)


def rows_of(logits: Tensor, first: int, second: int) -> Tensor:
    """Log-probs of a completion of two tokens, (1, 2)."""
    logprobs = logits.log_softmax(-1)
    return torch.stack([logprobs[0, first], logprobs[1 + first, second]])[None]


def two_token_gradient(correction: Importance, stale: Tensor = STALE) -> Tensor:
    logits, total = LOGITS.clone().requires_grad_(), torch.zeros((), dtype=torch.float64)
    for first, second in product(range(3), repeat=2):
        old = rows_of(stale, first, second)
        loss, _ = grpo_loss(
            rows_of(logits, first, second), old, REWARDS[first, second].view(1), torch.tensor([[True, True]]),
            importance=correction, aggregate="sum",
        )  # fmt: skip
        total = total - old.sum().exp() * loss
    return torch.autograd.grad(total, logits)[0]


def policy_gradient(continuation: Tensor | None = None) -> Tensor:
    """In the logits, of the expected reward; `continuation` draws the second token by other logits."""
    logits = LOGITS.clone().requires_grad_()
    first = logits[0].softmax(-1)
    second = (logits if continuation is None else continuation)[1:].softmax(-1)
    return torch.autograd.grad((first[:, None] * second * REWARDS).sum(), logits)[0]


@pytest.mark.parametrize("name", sorted(IMPORTANCE))
def test_on_fresh_samples_two_tokens_are_exact_too(name: str) -> None:
    found = two_token_gradient(IMPORTANCE[name](), stale=LOGITS)
    torch.testing.assert_close(found, policy_gradient(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("correction", [value for value in UNCAPPED if not isinstance(value, GSPO)], ids=repr)
def test_a_ratio_a_token_leaves_the_bias_of_what_comes_before_and_after(correction: Importance) -> None:
    """The first token is judged by how the sampler went on, the second weighed by how often the sampler came there."""
    found = two_token_gradient(correction)
    torch.testing.assert_close(found[0], policy_gradient(continuation=STALE)[0], rtol=1e-12, atol=1e-12)
    visits = STALE[0].softmax(-1) / LOGITS[0].softmax(-1)
    torch.testing.assert_close(found[1:], visits[:, None] * policy_gradient()[1:], rtol=1e-12, atol=1e-12)


def test_the_bias_that_remains_is_smaller_than_without_a_correction() -> None:
    exact = policy_gradient()
    uncapped, none = (
        ((two_token_gradient(correction) - exact).norm() / exact.norm()).item()
        for correction in (TIS(100.0), NoCorrection())
    )
    assert 0.05 < uncapped < none


def test_a_ratio_a_sequence_is_no_unbiased_weight() -> None:
    exact = policy_gradient()
    assert (two_token_gradient(GSPO(100.0, 100.0)) - exact).norm() > 0.05 * exact.norm()
