"""The three KL estimators against sums over every outcome, which also settle the direction."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kit.kl import k1, k2, k3

POLICY = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
REFERENCE = torch.tensor([0.125, 0.5, 0.125, 0.25], dtype=torch.float64)
# sum p log(p/q) = (1/2) log 4 + (1/4) log(1/2) + (1/8) log 1 + (1/8) log(1/2) = (1 - 1/4 - 1/8) log 2
KL = 0.625 * math.log(2)
# The other direction: (1/8) log(1/4) + (1/2) log 2 + 0 + (1/4) log 2 = (-1/4 + 1/2 + 1/4) log 2
REVERSED_KL = 0.5 * math.log(2)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_average_to_the_kl_from_policy_to_reference(estimator: Callable[[Tensor, Tensor], Tensor]) -> None:
    expectation = (POLICY * estimator(POLICY.log(), REFERENCE.log())).sum()
    assert expectation.item() == pytest.approx(KL, abs=1e-12)
    swapped = (REFERENCE * estimator(REFERENCE.log(), POLICY.log())).sum()
    assert swapped.item() == pytest.approx(REVERSED_KL, abs=1e-12)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (k1, [math.log(4), -math.log(2), 0.0]),
        (k2, [0.5 * math.log(4) ** 2, 0.5 * math.log(2) ** 2, 0.0]),
        (k3, [1 / 4 + math.log(4) - 1, 2 - math.log(2) - 1, 0.0]),  # q/p - log(q/p) - 1 at q/p = 1/4, 2, 1
    ],
)
def test_each_token_has_the_value_of_its_formula(
    estimator: Callable[[Tensor, Tensor], Tensor], expected: list[float]
) -> None:
    assert estimator(POLICY.log(), REFERENCE.log())[:3].tolist() == pytest.approx(expected, abs=1e-12)


def test_expected_gradients_are_zero_the_kl_and_the_reversed_kl() -> None:
    """The samples come from the policy, but only the estimator is differentiated: what a loss term does."""
    logits = POLICY.log().requires_grad_()

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits)[0]

    def expected(estimator: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return gradient((POLICY * estimator(logits.log_softmax(-1), REFERENCE.log())).sum())

    logprobs = logits.log_softmax(-1)
    forward = gradient((logprobs.exp() * (logprobs - REFERENCE.log())).sum())
    logprobs = logits.log_softmax(-1)
    backward = gradient((REFERENCE * (REFERENCE.log() - logprobs)).sum())
    torch.testing.assert_close(expected(k1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(expected(k2), forward, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(expected(k3), backward, rtol=1e-12, atol=1e-12)


def test_k3_keeps_its_digits_where_policy_and_reference_nearly_agree() -> None:
    # exp(d) - d - 1 = d^2 / 2 + d^3 / 6 + ... = 5.0002e-7 at d = 1e-3; written so, float32 would give 4.8e-7 or 6.0e-7.
    near = k3(torch.tensor([0.0]), torch.tensor([1e-3]))
    assert near.item() == pytest.approx(5.0002e-7, rel=1e-3)
    far = torch.linspace(-20, 20, 1001)
    assert (k3(torch.zeros_like(far), far) >= 0).all()


@pytest.mark.usefixtures("_shapes_unchecked")
@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_shapes_that_would_broadcast_are_refused(estimator: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"one shape, came logprobs \(2, 3\), ref_logprobs \(3,\)"):
        estimator(torch.zeros(2, 3), torch.zeros(3))
