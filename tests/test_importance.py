"""Importance corrections: loss, slope and side of the clip by hand, their limits, and what they refuse."""

import math
from collections.abc import Callable
from typing import Any

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
    Tokens,
)
from kit.losses import grpo_loss
from kit.masking import aggregate_tokens

INF, NAN = math.inf, math.nan


def nats(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def one_token(correction: Importance, ratio: float, advantage: float, prox: float) -> tuple[float, float, str]:
    """Loss and slope in log pi of a token of log-prob -1 under the sampler, and the side on which it was clipped."""
    logprobs = nats([math.log(ratio) - 1]).requires_grad_()
    tokens = Tokens(logprobs, nats([-1.0]), nats([math.log(prox) - 1]), nats([advantage]), torch.tensor([[True]]))
    found = correction.surrogate(tokens)
    slope = torch.autograd.grad(found.loss.sum(), logprobs, allow_unused=True)[0] if found.loss.requires_grad else None
    side = {(False, False): "", (True, False): "low", (False, True): "high"}
    return (
        found.loss.item(),
        0.0 if slope is None else slope.item(),
        side[bool(found.is_low_clipped), bool(found.is_high_clipped)],
    )


# Where a gradient flows, the slope in log pi of rho A is rho A; where rho is a mere weight on log pi, the same.
# PPOClip's six cases of sign and ratio are in test_losses_grpo.
GOLDEN: list[tuple[Importance, float, float, float, float, str]] = [
    # correction, ratio, A, loss, slope, side
    (NoCorrection(), 0.1, 2.0, -2.0, -2.0, ""),
    (NoCorrection(), 9.0, -3.0, 3.0, 3.0, ""),
    (PPOClip(0.2, ratio_max=3.0), 5.0, -1.0, 3.0, 0.0, "high"),  # bad: -min(min(5, 3) * -1, 1.2 * -1), a constant
    (PPOClip(0.2, ratio_max=3.0), 2.5, -1.0, 2.5, 2.5, ""),  # bad, below the second bound: pushed down
    (PPOClip(0.2, ratio_max=3.0), 5.0, 1.0, -1.2, 0.0, "high"),  # good: the ordinary clip
    (PPOClip(0.2, ratio_max=3.0), 0.5, -1.0, 0.8, 0.0, "low"),
    (PPOClip(0.2, ratio_max=3.0), 5.0, 0.0, 0.0, 0.0, ""),  # no advantage, nothing to clip
    (TIS(2.0), 0.25, 2.0, -0.5, -0.5, ""),  # weighed down, never clipped: -0.25 * 2
    (TIS(2.0), 1.5, 2.0, -3.0, -3.0, ""),  # twice that if the weight had a gradient too
    (TIS(2.0), 3.0, 2.0, -4.0, -4.0, "high"),  # weight 2: still a gradient
    (TIS(2.0), 3.0, -1.0, 2.0, 2.0, "high"),
    (IcePop(0.5, 5.0), 0.4, 2.0, 0.0, 0.0, "low"),
    (IcePop(0.5, 5.0), 0.6, 2.0, -1.2, -1.2, ""),
    (IcePop(0.5, 5.0), 4.0, -1.0, 4.0, 4.0, ""),
    (IcePop(0.5, 5.0), 6.0, -1.0, 0.0, 0.0, "high"),  # whatever its sign
    (IcePop(0.5, 5.0), 6.0, 1.0, 0.0, 0.0, "high"),
    (CISPO(5.0), 2.0, 3.0, -6 * (math.log(2) - 1), -6.0, ""),  # -rho A log pi, log pi = log 2 - 1
    (CISPO(5.0), 8.0, -1.0, 5 * (math.log(8) - 1), 5.0, "high"),
    (CISPO(5.0), 0.1, 3.0, -0.3 * (math.log(0.1) - 1), -0.3, ""),
    (GSPO(0.2, 0.3), 1.25, 2.0, -2.5, -2.5, ""),  # a sequence of one token: PPO's clip
    (GSPO(0.2, 0.3), 1.5, 2.0, -2.6, 0.0, "high"),
    (GSPO(0.2, 0.3), 1.5, -2.0, 3.0, 3.0, ""),
    (GSPO(0.2, 0.3), 0.5, -2.0, 1.6, 0.0, "low"),
    (M2PO(0.04), math.exp(0.1), 2.0, -2 * math.exp(0.1), -2 * math.exp(0.1), ""),  # 0.1^2 < 0.04
    (M2PO(0.04), math.exp(0.3), 2.0, 0.0, 0.0, "high"),  # 0.3^2 > 0.04
    (M2PO(0.04), math.exp(-0.3), 2.0, 0.0, 0.0, "low"),  # either sign
    (M2PO(0.04, bound=0.4), math.exp(-0.3), -1.0, math.exp(-0.3), math.exp(-0.3), ""),  # the step's bound counts
]


@pytest.mark.parametrize(("correction", "ratio", "advantage", "loss", "slope", "side"), GOLDEN)
def test_loss_slope_and_side_of_one_token(
    correction: Importance, ratio: float, advantage: float, loss: float, slope: float, side: str
) -> None:
    found = one_token(correction, ratio, advantage, prox=ratio)
    assert found[:2] == pytest.approx((loss, slope), abs=1e-9)
    assert found[2] == side


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "side"),
    [
        # Before the first pass the policy had twice the sampler's probability: weight 2, ratio / 2 in [0.8, 1.2].
        (2.2, 1.0, -2.2, -2.2, ""),  # 2 * 1.1; around the sampler, 2.2 would be clipped
        (3.0, 1.0, -2.4, 0.0, "high"),  # 2 * min(1.5, 1.2)
        (3.0, -1.0, 3.0, 3.0, ""),
        (1.0, -1.0, 1.6, 0.0, "low"),  # 2 * max(0.5, 0.8); around the sampler, 1 would not be clipped
        (1.0, 1.0, -1.0, -1.0, ""),
    ],
)
def test_decoupled_ppo_clips_around_the_recent_policy_and_weighs_from_the_sampler(
    ratio: float, advantage: float, loss: float, slope: float, side: str
) -> None:
    found = one_token(DecoupledPPO(0.2), ratio, advantage, prox=2.0)
    assert found[:2] == pytest.approx((loss, slope), abs=1e-9) and found[2] == side


# Sequences of 2, 3 and 1 tokens; log-ratios 0.1 and 0.3; -0.5, 0 and -0.1; 0.7.
LOG_RATIOS = nats([0.1, 0.3, 0.0], [-0.5, 0.0, -0.1], [0.7, 0.0, 0.0])
MASK = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
OLD = nats([-1.0, -2.0, -0.5], [-0.3, -1.5, -2.5], [-4.0, -1.0, -1.0])
ADVANTAGES = nats([1.0], [-2.0], [0.5])
PROX = OLD + 0.6 * LOG_RATIOS


def loss_and_gradient(correction: Importance, how: str = "sum", **changes: Tensor) -> tuple[Tensor, Tensor]:
    """Of the sequences above."""
    logprobs = (OLD + LOG_RATIOS).requires_grad_()
    found = correction.surrogate(Tokens(logprobs, OLD, PROX, ADVANTAGES, MASK)._replace(**changes))
    loss = aggregate_tokens(found.loss, MASK, how)
    return loss.detach(), torch.autograd.grad(loss, logprobs)[0]


def test_gspo_has_one_ratio_a_sequence_the_geometric_mean_of_its_tokens() -> None:
    # s: e^((0.1 + 0.3) / 2) = e^0.2, e^(-0.6 / 3) = e^-0.2, e^0.7. Losses -s A: -e^0.2, 2 e^-0.2, and the third is
    # clipped at 1.5: -0.75. Slope of s in each log pi: s over the length; then the mean over tokens and sequences.
    loss, gradient = loss_and_gradient(GSPO(0.5, 0.5), "sequence")
    up, down = math.exp(0.2), math.exp(-0.2)
    assert loss.item() == pytest.approx((-up + 2 * down - 0.75) / 3, abs=1e-12)
    expected = nats([-up / 6, -up / 6, 0], [2 * down / 9] * 3, [0, 0, 0])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("correction", "low", "high"),
    [
        # s = 1.2214, 0.8187 and 2.0138; A = 1, -2 and 0.5
        (GSPO(0.19, 0.23), [False, False, False], [False, False, True]),
        (GSPO(0.19, 0.22), [False, False, False], [True, False, True]),
        (GSPO(0.18, 0.22), [False, True, False], [True, False, True]),
    ],
)
def test_gspo_trains_a_sequence_whole_or_not_at_all(correction: GSPO, low: list[bool], high: list[bool]) -> None:
    found = correction.surrogate(Tokens(OLD + LOG_RATIOS, OLD, PROX, ADVANTAGES, MASK))
    assert found.is_low_clipped.tolist() == [[flag] * 3 for flag in low]
    assert found.is_high_clipped.tolist() == [[flag] * 3 for flag in high]
    assert found.loss.shape == MASK.shape


@pytest.mark.parametrize("name", sorted(IMPORTANCE))
def test_fresh_samples_need_no_correction(name: str) -> None:
    """At ratio 1 every gradient is that of -A log pi, and nothing is clipped."""
    same = {"old_logprobs": OLD + LOG_RATIOS, "prox_logprobs": OLD + LOG_RATIOS}
    _, gradient = loss_and_gradient(IMPORTANCE[name](), **same)
    torch.testing.assert_close(gradient, torch.where(MASK, -ADVANTAGES / 3, 0.0), rtol=0, atol=1e-12)
    found = IMPORTANCE[name]().surrogate(Tokens(OLD + LOG_RATIOS, advantages=ADVANTAGES, completion_mask=MASK, **same))
    assert not found.is_low_clipped.any() and not found.is_high_clipped.any()


@pytest.mark.parametrize("ratio_max", [1.2, 5.0])
def test_tis_and_cispo_of_one_cap_have_one_gradient_and_two_losses(ratio_max: float) -> None:
    (loss, gradient), (other_loss, other_gradient) = (
        loss_and_gradient(correction) for correction in (TIS(ratio_max), CISPO(ratio_max))
    )
    torch.testing.assert_close(gradient, other_gradient, rtol=1e-12, atol=0)
    assert abs(loss - other_loss) > 0.1


def test_the_gradient_of_tis_is_rho_a_and_not_twice_that() -> None:
    _, gradient = loss_and_gradient(TIS(INF))
    torch.testing.assert_close(gradient, torch.where(MASK, -LOG_RATIOS.exp() * ADVANTAGES / 3, 0.0))


def test_decoupled_ppo_around_the_sampler_is_ppo() -> None:
    for found, expected in zip(
        loss_and_gradient(DecoupledPPO(0.2, 0.3), prox_logprobs=OLD), loss_and_gradient(PPOClip(0.2, 0.3)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_decoupled_ppo_in_the_first_pass_is_the_uncapped_ratio() -> None:
    loss, gradient = loss_and_gradient(DecoupledPPO(0.01), prox_logprobs=OLD + LOG_RATIOS)
    expected = torch.where(MASK, -LOG_RATIOS.exp() * ADVANTAGES, 0.0)
    torch.testing.assert_close(loss, expected.sum() / 3, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected / 3, rtol=1e-12, atol=0)


def test_no_gradient_reaches_the_recent_policy_or_the_sampler() -> None:
    for name in IMPORTANCE:
        old, prox = OLD.clone().requires_grad_(), PROX.clone().requires_grad_()
        grpo_loss(
            (OLD + LOG_RATIOS).requires_grad_(), old, ADVANTAGES[:, 0], MASK, importance=name, prox_logprobs=prox
        )[0].backward()
        assert old.grad is None and prox.grad is None


VALUES = [*(make() for make in IMPORTANCE.values()), PPOClip(0.1, 0.2, ratio_max=1.3), TIS(1.1), IcePop(0.9, 1.2),
          CISPO(1.1), GSPO(0.2, 0.2), DecoupledPPO(0.05, 0.1, 1.2), M2PO(0.02, bound=0.2)]  # fmt: skip


@pytest.mark.parametrize("correction", VALUES, ids=repr)
@pytest.mark.parametrize("poison", [7.0, NAN, INF, -INF])
def test_masked_positions_never_matter(correction: Importance, poison: float) -> None:
    results = []
    for is_poisoned in (False, True):
        logprobs, old, prox = (
            torch.where(MASK, tensor, poison) if is_poisoned else tensor.clone()
            for tensor in (OLD + LOG_RATIOS, OLD, PROX)
        )
        logprobs.requires_grad_()
        loss, metrics = grpo_loss(logprobs, old, ADVANTAGES[:, 0], MASK, importance=correction, prox_logprobs=prox)
        results.append((loss, torch.autograd.grad(loss, logprobs)[0], metrics))
    (clean, clean_gradient, clean_metrics), (loss, gradient, metrics) = results
    assert torch.equal(clean, loss) and torch.equal(clean_gradient, gradient) and clean_metrics == metrics


@pytest.mark.parametrize("name", sorted(IMPORTANCE))
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("log_ratio", [-500.0, 500.0])
def test_an_absurd_ratio_keeps_loss_and_gradient_finite(name: str, log_ratio: float, advantage: float) -> None:
    logprobs = torch.tensor([[-1.0, log_ratio]], requires_grad=True)
    old, mask = torch.tensor([[-1.0, 0.0]]), torch.tensor([[True, True]])
    loss, metrics = grpo_loss(logprobs, old, torch.tensor([advantage]), mask, importance=name)
    assert loss.isfinite() and torch.autograd.grad(loss, logprobs)[0].isfinite().all()
    assert all(math.isfinite(value) for value in metrics.values())


def test_only_what_reads_more_than_a_token_asks_for_it() -> None:
    assert [name for name in IMPORTANCE if IMPORTANCE[name]().needs_fit] == ["m2po"]
    assert [name for name in IMPORTANCE if IMPORTANCE[name]().needs_prox_logprobs] == ["decoupled"]
    for name in IMPORTANCE.keys() - {"m2po"}:
        value = IMPORTANCE[name]()
        assert value.fitted(torch.tensor([0.1, 9.0])) is value


REFUSED: list[tuple[Callable[..., Importance], dict[str, Any], str]] = [
    *((make, {name: number}, rf"{make.__name__}\.{name} > 0, came {number}")
      for make, names in ((PPOClip, ("clip_eps", "clip_eps_high")), (DecoupledPPO, ("clip_eps", "clip_eps_high")),
                          (GSPO, ("clip_eps", "clip_eps_high")), (TIS, ("ratio_max",)), (CISPO, ("ratio_max",)),
                          (M2PO, ("max_m2", "bound")))
      for name in names for number in (0.0, -0.1, NAN)),
    (PPOClip, {"ratio_max": 1.2}, r"PPOClip\.ratio_max > 1\.2"),  # would bound inside of the clip
    (PPOClip, {"clip_eps_high": 0.5, "ratio_max": 1.4}, r"ratio_max > 1\.5"),
    (PPOClip, {"ratio_max": NAN}, "ratio_max"),
    (DecoupledPPO, {"ratio_max": 1.0}, r"DecoupledPPO\.ratio_max"),
    (IcePop, {"ratio_min": -0.1}, "0 <= ratio_min < 1 < ratio_max"),
    (IcePop, {"ratio_min": 1.0}, "fresh samples"),
    (IcePop, {"ratio_max": 1.0}, "fresh samples"),
    (IcePop, {"ratio_min": NAN}, "came nan"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "constants", "message"), REFUSED)
def test_a_constant_out_of_range_is_refused(
    make: Callable[..., Importance], constants: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**constants)


def test_corrections_are_values() -> None:
    assert len({make() for make in IMPORTANCE.values()} | {make() for make in IMPORTANCE.values()}) == len(IMPORTANCE)
    assert PPOClip() != DecoupledPPO() and TIS(2.0) == IMPORTANCE["tis"](ratio_max=2.0)


# Section 4.1 of arXiv 2507.18071 (GSPO), TRL's cap for TIS, the IcePop report, ScaleRL (arXiv 2510.13786) for CISPO.
def test_the_constants_are_the_published_ones_unless_told_otherwise() -> None:
    assert (GSPO().clip_eps, GSPO().clip_eps_high) == (3e-4, 4e-4)
    assert (IcePop().ratio_min, IcePop().ratio_max) == (0.5, 5.0)
    assert (TIS().ratio_max, CISPO().ratio_max) == (2.0, 5.0)
    assert (PPOClip().clip_eps, PPOClip().clip_eps_high, PPOClip().ratio_max) == (0.2, None, None)


def exactly(correction: Importance, log_ratio: float, advantage: float) -> tuple[float, bool, bool]:
    """Loss and flags of one token at a log-ratio, with the sampler's log-prob at 0 so that nothing is rounded."""
    logprobs = nats([log_ratio])
    tokens = Tokens(logprobs, nats([0.0]), logprobs, nats([advantage]), torch.tensor([[True]]))
    found = correction.surrogate(tokens)
    return found.loss.item(), bool(found.is_low_clipped), bool(found.is_high_clipped)


def test_a_ratio_exactly_at_a_bound_is_inside() -> None:
    half, double = math.log(0.5), math.log(2.0)  # whose exponentials are 0.5 and 2 to the last bit
    assert exactly(PPOClip(0.5), half, -1.0) == (0.5, False, False)
    assert exactly(PPOClip(1.0), double, 1.0) == (-2.0, False, False)
    assert exactly(PPOClip(0.5, ratio_max=2.0), double, -1.0) == (2.0, False, False)
    assert exactly(TIS(2.0), double, 1.0) == (-2.0, False, False)
    assert exactly(IcePop(0.5, 3.0), half, 1.0) == (-0.5, False, False)
    assert exactly(IcePop(0.5, 2.0), double, 1.0) == (-2.0, False, False)
    assert exactly(CISPO(2.0), double, 1.0) == (-2.0 * double, False, False)


@pytest.mark.parametrize("advantage", [0.0, 0.5])
def test_a_small_ratio_is_clipped_only_where_the_advantage_is_negative(advantage: float) -> None:
    assert exactly(PPOClip(0.2), math.log(0.5), advantage) == (-0.5 * advantage, False, False)


def test_icepop_may_have_no_lower_end() -> None:
    assert exactly(IcePop(0.0, 5.0), math.log(0.5), 1.0) == (-0.5, False, False)


def test_a_ratio_beyond_all_bounds_counts_as_e_to_the_20() -> None:
    loss, _, _ = exactly(DecoupledPPO(), 500.0, 1.0)  # in the first pass, its weight is the whole ratio
    assert loss == pytest.approx(-485165195.4097903, rel=1e-12)
