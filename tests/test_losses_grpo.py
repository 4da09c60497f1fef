"""The GRPO loss: the six cases of the clip, four ways to average, and the KL term."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kit.importance import IMPORTANCE, TIS
from kit.kl import KLEstimator, k1, k2, k3
from kit.losses import grpo_loss

ONE_TOKEN = torch.tensor([[True]])


def nats(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def one_token(ratio: float, advantage: float, **constants: Any) -> tuple[float, float, dict[str, float]]:
    """Loss, its slope in log pi, and the metrics of a single token."""
    logprobs = nats([math.log(ratio) - 1.0]).requires_grad_()
    loss, metrics = grpo_loss(logprobs, nats([-1.0]), nats([advantage])[0], ONE_TOKEN, **constants)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.item(), gradient.item(), metrics


# -min(ratio A, clip(ratio, 0.8, 1.3) A) by hand. Where the clipped side is the smaller one, nothing flows; elsewhere
# the slope in log pi is that of -ratio A, so -ratio A itself.
SIX_CASES = [
    # ratio, A, loss, slope, low, high
    (0.5, 2.0, -1.0, -1.0, 0.0, 0.0),  # too rare, but good: min(1.0, 1.6), pull it back up
    (1.1, 2.0, -2.2, -2.2, 0.0, 0.0),  # close
    (1.5, 2.0, -2.6, 0.0, 0.0, 1.0),  # good and already far more likely: min(3.0, 2.6)
    (0.5, -2.0, 1.6, 0.0, 1.0, 0.0),  # bad and already far less likely: min(-1.0, -1.6)
    (1.1, -2.0, 2.2, 2.2, 0.0, 0.0),  # close
    (1.5, -2.0, 3.0, 3.0, 0.0, 0.0),  # too likely, and bad: min(-3.0, -2.6), push it down
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope", "low", "high"), SIX_CASES)
def test_the_clip_stops_the_gradient_only_where_the_ratio_went_too_far_in_the_wanted_direction(
    ratio: float, advantage: float, loss: float, slope: float, low: float, high: float
) -> None:
    came = one_token(ratio, advantage, clip_eps=0.2, clip_eps_high=0.3)
    assert came[:2] == pytest.approx((loss, slope), abs=1e-9)
    assert came[2] == pytest.approx(
        {
            "policy_loss": loss,
            "clip_ratio/low_mean": low,
            "clip_ratio/high_mean": high,
            "clip_ratio/region_mean": low + high,
        },
        abs=1e-9,
    )


def test_one_half_width_serves_both_sides_unless_told_otherwise() -> None:
    assert one_token(1.25, 1.0, clip_eps=0.1)[0] == pytest.approx(-1.1, abs=1e-9)
    assert one_token(0.5, -1.0, clip_eps=0.1)[0] == pytest.approx(0.9, abs=1e-9)
    assert one_token(1.25, 1.0, clip_eps=0.1, clip_eps_high=0.2)[0] == pytest.approx(-1.2, abs=1e-9)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_without_a_correction_loss_and_slope_are_the_advantage_whatever_the_ratio(ratio: float) -> None:
    loss, slope, metrics = one_token(ratio, 2.0, importance="none")
    assert (loss, slope) == pytest.approx((-2.0, -2.0), abs=1e-9)
    assert metrics["clip_ratio/region_mean"] == 0.0


@pytest.mark.parametrize("importance", sorted(IMPORTANCE))
def test_every_mode_is_the_policy_gradient_on_fresh_samples(importance: str) -> None:
    logprobs = nats([-1.0, -2.0], [-0.5, -3.0]).requires_grad_()
    mask = torch.ones(2, 2, dtype=torch.bool)
    loss, metrics = grpo_loss(
        logprobs, logprobs.detach(), nats([1.0, -3.0])[0], mask, importance=importance, aggregate="sum"
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient.tolist() == [[-0.5, -0.5], [1.5, 1.5]]  # -A / 2 sequences, for each token
    assert [metrics[f"clip_ratio/{side}_mean"] for side in ("low", "high", "region")] == [0.0, 0.0, 0.0]


def test_the_ratio_corrects_exactly_for_a_stale_sampler() -> None:
    """Over all outcomes of the *sampler*, the unclipped loss has the gradient of the *policy's* expected reward."""
    logits, stale = nats([0.2, -0.4, 0.7])[0].requires_grad_(), nats([0.5, 0.3, 0.2])[0].log()
    advantages = nats([1.0, -2.0, 0.5])[0]
    (exact,) = torch.autograd.grad((logits.softmax(-1) * advantages).sum(), logits)

    def estimate(importance: str, **constants: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for token in range(3):
            logprob = logits.log_softmax(-1)[token].view(1, 1)
            loss, _ = grpo_loss(
                logprob, stale[token].view(1, 1), advantages[[token]], ONE_TOKEN, importance=importance, **constants
            )
            total = total - stale[token].exp() * loss
        return torch.autograd.grad(total, logits)[0]

    torch.testing.assert_close(estimate("clip", clip_eps=100.0), exact, rtol=1e-12, atol=1e-12)
    assert (estimate("none") - exact).abs().max() > 0.1  # right on fresh samples only


# Two sequences of 2 and 1 tokens, advantages 1 and -2. Ratios e^0.1, 1, 1: losses -e^0.1, -1 and 2.
LOGPROBS = nats([-0.9, -2.0, 0.0], [-3.0, 0.0, 0.0])
OLD_LOGPROBS = nats([-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0])
REF_LOGPROBS = nats([-0.9, -2.0 + math.log(2), 0.0], [-3.0 - math.log(2), 0.0, 0.0])  # pi_ref / pi is 1, 2, 1/2
ADVANTAGES = torch.tensor([1.0, -2.0], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, False, False]])
E = math.exp(0.1)
KL = 0.0, 1 - math.log(2), math.log(2) - 0.5  # r - log r - 1 at r = 1, 2, 1/2


@pytest.mark.parametrize(
    ("aggregate", "policy_loss", "kl"),
    [
        ("sequence", ((-E - 1) / 2 + 2) / 2, ((KL[0] + KL[1]) / 2 + KL[2]) / 2),
        ("sum", ((-E - 1) + 2) / 2, ((KL[0] + KL[1]) + KL[2]) / 2),
        ("token", (-E - 1 + 2) / 3, sum(KL) / 3),
        ("constant", ((-E - 1) + 2) / 2 / 5, ((KL[0] + KL[1]) + KL[2]) / 2 / 5),  # of 5 tokens
    ],
)
def test_policy_and_kl_terms_are_averaged_alike(aggregate: str, policy_loss: float, kl: float) -> None:
    length = 5 if aggregate == "constant" else None
    loss, metrics = grpo_loss(
        LOGPROBS, OLD_LOGPROBS, ADVANTAGES, MASK, aggregate=aggregate, max_completion_length=length
    )
    assert loss.item() == pytest.approx(policy_loss, abs=1e-9)
    assert "kl" not in metrics
    loss, metrics = grpo_loss(
        LOGPROBS, OLD_LOGPROBS, ADVANTAGES, MASK, aggregate=aggregate, max_completion_length=length,
        ref_logprobs=REF_LOGPROBS, kl_coef=0.5,
    )  # fmt: skip
    assert loss.item() == pytest.approx(policy_loss + 0.5 * kl, abs=1e-9)
    assert metrics["policy_loss"] == pytest.approx(policy_loss, abs=1e-9)
    assert metrics["kl"] == pytest.approx(sum(KL) / 3, abs=1e-9)  # over all tokens, however the loss is averaged
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize(
    ("estimator", "kl", "slopes"),
    [
        # d = log pi_ref - log pi = 0, log 2 and -log 2; slopes in log pi: 1 for k1, -d for k2, 1 - e^d for k3
        (k1, -math.log(2) + math.log(2), (1, 1, 1)),
        (k2, math.log(2) ** 2, (0, -math.log(2), math.log(2))),
        (k3, KL[1] + KL[2], (0, -1, 0.5)),
    ],
)
def test_the_kl_term_is_the_estimate_that_was_asked_for(
    estimator: KLEstimator, kl: float, slopes: tuple[float, ...]
) -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    loss, metrics = grpo_loss(
        logprobs, OLD_LOGPROBS, torch.zeros(2, dtype=torch.float64), MASK, aggregate="token",
        ref_logprobs=REF_LOGPROBS, kl_coef=0.5, kl_estimator=estimator,
    )  # fmt: skip
    assert metrics["kl"] == pytest.approx(kl / 3, abs=1e-12)
    assert loss.item() == pytest.approx(0.5 * kl / 3, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient[MASK].tolist() == pytest.approx([0.5 * slope / 3 for slope in slopes], abs=1e-12)


@pytest.mark.parametrize(("advantage", "low", "high"), [(1.0, 0.0, 0.5), (-1.0, 0.5, 0.0)])
def test_metrics_run_over_the_tokens_that_count(advantage: float, low: float, high: float) -> None:
    logprobs, old = nats([-1.0, -4.0, -9.0]), nats([-1.0 - math.log(2), -4.0 + math.log(4), 0.0])  # ratios 2, 1/4
    _, metrics = grpo_loss(logprobs, old, nats([advantage])[0], torch.tensor([[True, True, False]]))
    names = "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"
    assert [metrics[name] for name in names] == [low, high, 0.5]


def test_a_reference_without_a_weight_is_measured_and_leaves_the_loss_alone() -> None:
    plain, _ = grpo_loss(LOGPROBS, OLD_LOGPROBS, ADVANTAGES, MASK)
    measured, metrics = grpo_loss(LOGPROBS, OLD_LOGPROBS, ADVANTAGES, MASK, ref_logprobs=REF_LOGPROBS)
    assert torch.equal(plain, measured) and metrics["kl"] > 0


def test_gradients_flow_into_the_policy_alone() -> None:
    arguments = [tensor.clone().requires_grad_() for tensor in (LOGPROBS, OLD_LOGPROBS, ADVANTAGES, REF_LOGPROBS)]
    logprobs, old_logprobs, advantages, ref_logprobs = arguments
    grpo_loss(logprobs, old_logprobs, advantages, MASK, ref_logprobs=ref_logprobs, kl_coef=0.5)[0].backward()
    assert [tensor.grad is None for tensor in arguments] == [False, True, True, True]


@pytest.mark.parametrize("importance", sorted(IMPORTANCE))
@pytest.mark.parametrize("poison", [7.0, math.nan, math.inf, -math.inf])
def test_masked_positions_never_matter(importance: str, poison: float) -> None:
    results = []
    for is_poisoned in (False, True):
        logprobs, old, ref = (
            torch.where(MASK, tensor, poison) if is_poisoned else tensor.clone()
            for tensor in (LOGPROBS, OLD_LOGPROBS, REF_LOGPROBS)
        )
        logprobs.requires_grad_()
        loss, metrics = grpo_loss(logprobs, old, ADVANTAGES, MASK, importance=importance, ref_logprobs=ref, kl_coef=0.5)
        results.append((loss, torch.autograd.grad(loss, logprobs)[0], metrics))
    (clean, clean_gradient, clean_metrics), (loss, gradient, metrics) = results
    assert torch.equal(clean, loss) and torch.equal(clean_gradient, gradient) and clean_metrics == metrics
    assert not gradient[~MASK].any()


@pytest.mark.parametrize(("aggregate", "shares"), [("sequence", (1, 1)), ("sum", (1, 1)), ("token", (4 / 3, 2 / 3))])
def test_micro_batches_weighted_by_their_share_add_up_to_the_batch(aggregate: str, shares: tuple[float, float]) -> None:
    def loss(rows: slice) -> Tensor:
        return grpo_loss(
            LOGPROBS[rows], OLD_LOGPROBS[rows], ADVANTAGES[rows], MASK[rows], aggregate=aggregate,
            ref_logprobs=REF_LOGPROBS[rows], kl_coef=0.5,
        )[0]  # fmt: skip

    parts = [loss(slice(row, row + 1)) * share / 2 for row, share in enumerate(shares)]
    assert torch.stack(parts).sum().item() == pytest.approx(loss(slice(0, 2)).item(), abs=1e-12)


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("log_ratio", [-500.0, 500.0])
def test_an_absurd_ratio_keeps_loss_gradient_and_metrics_finite(log_ratio: float, advantage: float) -> None:
    logprobs = torch.tensor([[log_ratio]], requires_grad=True)
    loss, metrics = grpo_loss(logprobs, torch.zeros(1, 1), torch.tensor([advantage]), ONE_TOKEN)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert loss.isfinite() and gradient.isfinite().all()
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kl_coef": 0.1}, "ref_logprobs because kl_coef is 0.1"),
        ({"kl_coef": -0.1}, "kl_coef >= 0, came -0.1"),
        ({"clip_eps": 0.0}, "clip_eps > 0"),
        ({"clip_eps_high": -0.1}, "clip_eps_high > 0"),
        ({"importance": "ppo"}, r"'cispo', 'clip', .*'none', 'tis'.*'ppo'"),
        ({"importance": "none", "clip_eps": 0.3}, "importance='clip' only, came 0.3"),
        ({"importance": TIS(), "clip_eps_high": 0.3}, "importance='clip' only"),
        ({"prox_logprobs": OLD_LOGPROBS[:1], "importance": "decoupled"}, "prox_logprobs"),
        ({"aggregate": "constant"}, "constant >= 1"),
        ({"aggregate": "constant", "max_completion_length": 0}, "constant >= 1"),
        ({"max_completion_length": 9}, "constant >= 1"),
        ({"kl_coef": math.nan}, "kl_coef >= 0, came nan"),
        ({"clip_eps": math.nan}, "clip_eps > 0"),
        ({"aggregate": "mean"}, r"'sequence', 'sum', 'token'.*'mean'"),
        ({"advantages": torch.tensor([1.0, math.nan])}, "abstained"),
        ({"completion_mask": torch.tensor([[True] * 3, [False] * 3])}, "nothing counts"),
        ({"advantages": torch.ones(3)}, "advantage"),
        ({"advantages": torch.ones(2, 3)}, "advantage"),
        ({"old_logprobs": OLD_LOGPROBS[:1]}, "old_logprobs"),
        ({"ref_logprobs": REF_LOGPROBS[:1]}, "ref_logprobs"),
    ],
)
def test_a_wrong_argument_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "logprobs": LOGPROBS, "old_logprobs": OLD_LOGPROBS, "advantages": ADVANTAGES, "completion_mask": MASK,
    } | change  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=message):
        grpo_loss(**arguments)


@pytest.mark.usefixtures("_shapes_unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old_logprobs": OLD_LOGPROBS[:1]}, r"one shape, came .*old_logprobs \(1, 3\)"),  # would broadcast
        ({"ref_logprobs": REF_LOGPROBS[:1]}, r"one shape, came .*ref_logprobs \(1, 3\)"),
        ({"prox_logprobs": REF_LOGPROBS[:1]}, r"one shape, came .*prox_logprobs \(1, 3\)"),
        ({"advantages": ADVANTAGES[:1]}, r"one advantage a sequence, \(2,\), came \(1,\)"),
    ],
)
def test_shapes_that_would_broadcast_are_named_in_the_error(change: dict[str, Any], message: str) -> None:
    tensors = {"logprobs": LOGPROBS, "old_logprobs": OLD_LOGPROBS, "advantages": ADVANTAGES, "completion_mask": MASK}
    with pytest.raises(ValueError, match=message):
        grpo_loss(**tensors | change)


def test_a_reference_that_is_only_watched_may_be_infinitely_far() -> None:
    far = torch.full((1, 2), 200.0)  # k3 of it is beyond float32
    loss, metrics = grpo_loss(
        torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2).bool(), ref_logprobs=far
    )
    assert loss.item() == -1.0 and metrics["kl"] == math.inf
