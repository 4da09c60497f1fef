"""The DPO loss: values by hand, its optimum by summing over all pairs, and what must not change it."""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from kit.losses import dpo_loss


def nats(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# beta 1/2. First pair: rewards (-1 + 2)/2 = 0.5 and (-3 + 1)/2 = -1, margin 1.5. Second: (-4 + 3)/2 = -0.5 and
# (-5 + 6)/2 = 0.5, margin -1.
EXAMPLE = nats(-1, -4), nats(-3, -5), nats(-2, -3), nats(-1, -6)
LOSSES = math.log(1 + math.exp(-1.5)), math.log(1 + math.e)  # -log sigma(1.5), -log sigma(-1)
WEIGHTS = 1 / (1 + math.exp(1.5)), 1 / (1 + math.exp(-1))  # sigma(-1.5), sigma(1)


def test_loss_is_the_mean_of_minus_log_sigma_of_the_margins() -> None:
    loss, _ = dpo_loss(*EXAMPLE, beta=0.5)
    assert loss.item() == pytest.approx(0.7573374827504566, abs=1e-9)  # (0.2014132780 + 1.3132616875) / 2
    assert loss.item() == pytest.approx(sum(LOSSES) / 2, abs=1e-12)


def test_metrics_are_means_over_pairs_under_their_names() -> None:
    _, metrics = dpo_loss(*EXAMPLE, beta=0.5)
    assert metrics == pytest.approx(
        {
            "rewards/chosen": 0.0,  # (0.5 - 0.5) / 2
            "rewards/rejected": -0.25,  # (-1 + 0.5) / 2
            "rewards/margins": 0.25,  # (1.5 - 1) / 2
            "rewards/accuracies": 0.5,  # one of two
            "logps/chosen": -2.5,
            "logps/rejected": -4.0,
            "pairs/weight": sum(WEIGHTS) / 2,
        },
        abs=1e-12,
    )
    assert all(type(value) is float for value in metrics.values())


def test_accuracy_is_the_fraction_of_pairs_with_a_positive_margin() -> None:
    # chosen - rejected at beta 1: 0.25, -3, 0.5 and 0
    _, metrics = dpo_loss(nats(-1.75, -5, -0.5, -2), nats(-2, -2, -1, -2), nats(0, 0, 0, 0), nats(0, 0, 0, 0), beta=1.0)
    assert metrics["rewards/accuracies"] == 0.5


def test_beta_is_a_tenth_unless_told_otherwise() -> None:
    assert dpo_loss(nats(7), nats(0), nats(4), nats(0))[1]["rewards/chosen"] == pytest.approx(0.3, abs=1e-12)


def test_gradient_is_beta_times_the_weight_and_none_reaches_the_reference() -> None:
    arguments = [tensor.clone().requires_grad_() for tensor in EXAMPLE]
    dpo_loss(*arguments, beta=0.5)[0].backward()
    chosen, rejected, ref_chosen, ref_rejected = (tensor.grad for tensor in arguments)
    expected = [-0.5 * weight / 2 for weight in WEIGHTS]  # -beta sigma(-margin), mean over two pairs
    assert chosen is not None and chosen.tolist() == pytest.approx(expected, abs=1e-12)
    assert rejected is not None and rejected.tolist() == pytest.approx([-x for x in expected], abs=1e-12)
    assert ref_chosen is None and ref_rejected is None


@pytest.mark.parametrize("beta", [0.01, 0.1, 3.0])
def test_at_the_reference_the_loss_is_log_2_and_no_pair_counts_as_right(beta: float) -> None:
    chosen, rejected = nats(-5, -7).requires_grad_(), nats(-6, -2)
    loss, metrics = dpo_loss(chosen, rejected, chosen.detach(), rejected, beta=beta)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)
    assert (metrics["rewards/accuracies"], metrics["pairs/weight"]) == (0.0, 0.5)
    (gradient,) = torch.autograd.grad(loss, chosen)
    assert gradient.tolist() == pytest.approx([-beta / 4] * 2, abs=1e-12)  # beta / 2, mean over two pairs


def test_the_optimum_is_the_reference_tilted_by_the_reward() -> None:
    """With preferences drawn from Bradley-Terry, pi = pi_ref exp(r / beta) / Z is stationary; exp(beta r) is not."""
    beta, rewards = 0.5, nats(0.3, -0.2, 0.8)
    reference = nats(0.2, 0.5, 0.3).log()
    pairs = torch.tensor(list(permutations(range(3), 2)))
    chosen, rejected = pairs.unbind(1)
    preferred = torch.sigmoid(rewards[chosen] - rewards[rejected])

    def gradient(logits: Tensor) -> Tensor:
        logprobs = logits.requires_grad_().log_softmax(-1)
        losses = [
            dpo_loss(*(source[side][None] for source in (logprobs, reference) for side in pair), beta=beta)[0]
            for pair in pairs
        ]
        return torch.autograd.grad((preferred * torch.stack(losses)).sum(), logits)[0]

    torch.testing.assert_close(gradient(reference + rewards / beta), torch.zeros(3).double(), rtol=0, atol=1e-12)
    assert gradient(reference + beta * rewards).abs().max() > 1e-2
    assert gradient(reference - rewards / beta).abs().max() > 1e-2


def test_a_shift_of_policy_and_reference_together_changes_no_loss() -> None:
    chosen, rejected, ref_chosen, ref_rejected = EXAMPLE
    shifted = dpo_loss(chosen - 8, rejected + 4, ref_chosen - 8, ref_rejected + 4)[0]
    assert shifted.item() == pytest.approx(dpo_loss(*EXAMPLE)[0].item(), abs=1e-12)


def test_swapping_chosen_and_rejected_negates_the_margins() -> None:
    chosen, rejected, ref_chosen, ref_rejected = EXAMPLE
    one, other = (
        dpo_loss(*arguments, beta=0.5) for arguments in (EXAMPLE, (rejected, chosen, ref_rejected, ref_chosen))
    )
    assert other[1]["rewards/margins"] == -one[1]["rewards/margins"]
    assert other[1]["pairs/weight"] == pytest.approx(1 - one[1]["pairs/weight"], abs=1e-12)
    # -log sigma(-m) = -log sigma(m) + m
    assert other[0].item() == pytest.approx(one[0].item() + one[1]["rewards/margins"], abs=1e-12)


def test_micro_batches_weighted_by_their_pairs_add_up_to_the_batch() -> None:
    three = [torch.cat([tensor, tensor[:1] - 1]) for tensor in EXAMPLE]
    parts = [dpo_loss(*(tensor[rows] for tensor in three))[0] * share for rows, share in
             ((slice(0, 2), 2 / 3), (slice(2, 3), 1 / 3))]  # fmt: skip
    assert torch.stack(parts).sum().item() == pytest.approx(dpo_loss(*three)[0].item(), abs=1e-12)


def test_a_huge_margin_neither_overflows_nor_loses_the_gradient() -> None:
    chosen = torch.tensor([-2000.0, 0.0], requires_grad=True)
    zeros = torch.zeros(2)
    loss, _ = dpo_loss(chosen, zeros, torch.tensor([0.0, -2000.0]), zeros, beta=1.0)  # margins -2000 and 2000
    assert loss.item() == 1000.0  # -log sigma is 2000 and 0
    (gradient,) = torch.autograd.grad(loss, chosen)
    assert gradient.tolist() == [-0.5, 0.0]


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan])
def test_a_beta_that_is_not_positive_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=f"beta > 0, came {beta}"):
        dpo_loss(*EXAMPLE, beta=beta)


@pytest.mark.usefixtures("_shapes_unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nats(), nats(), nats(), nats()), r"log-probability a pair, \(pair,\), came \(0,\)"),  # the mean of nothing
        ((*EXAMPLE[:3], nats(0.0)), r"one shape, came .*ref_rejected_logprobs \(1,\)"),  # would broadcast
        (tuple(tensor[:, None] for tensor in EXAMPLE), r"came \(2, 1\).*sum over tokens"),  # per token, not summed
    ],
    ids=["no pairs", "one too few", "not summed"],
)
def test_anything_but_one_number_a_pair_is_refused(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dpo_loss(*arguments)
