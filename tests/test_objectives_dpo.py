"""DPO's share of a step's loss: by hand, under each of its options, and however the step is cut up."""

import math
from typing import Any

import pytest

from kit.objectives import DPO
from kit.types import Example, Totals
from tests.batches import rollout, scores

PAIR = [Example((rollout(0), rollout(1)), is_chosen=(True, False))]


def test_dpo_divides_by_prompts_not_by_pairs() -> None:
    same = scores([[-1.0, -2.0], [-3.0]])
    loss, metrics = DPO().loss(PAIR, same, same, Totals(prompts=4, rollouts=32, tokens=999, examples=1))
    assert loss.item() == pytest.approx(math.log(2) / 4)  # policy = reference: ln 2 for the pair, over four prompts
    assert metrics["rewards/margins"] == 0.0


def test_dpo_loss_by_hand() -> None:
    # Log-ratios: chosen -3 - -4 = 1, rejected -3 - -1 = -2. Margin 0.5 * (1 + 2) = 1.5; the loss is ln(1 + e^-1.5).
    found, reference = scores([[-1.0, -2.0], [-3.0]]), scores([[-2.0, -2.0], [-1.0]])
    loss, metrics = DPO(beta=0.5).loss(PAIR, found, reference, Totals(1, 8, 9, 1))
    assert loss.item() == pytest.approx(0.2014132779827524, abs=1e-12)
    assert metrics["rewards/margins"] == pytest.approx(1.5)


def test_dpo_adds_the_nll_and_the_entropy_of_the_chosen_completion() -> None:
    # nll: 3 nats over 2 tokens = 1.5, weight 0.2; entropy 0.5 a token, weight 0.1; all over 2 prompts.
    same = scores([[-1.0, -2.0], [-30.0]])
    totals = Totals(prompts=2, rollouts=16, tokens=99, examples=1, chosen_tokens=2)
    loss, metrics = DPO(nll_coef=0.2, entropy_coef=0.1).loss(PAIR, same, same, totals)
    assert loss.item() == pytest.approx((math.log(2) + 0.2 * 1.5 - 0.1 * 0.5) / 2, abs=1e-12)
    assert metrics["nll_loss"] == pytest.approx(1.5)


def test_dpo_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the reference's log-probs"):
        DPO().loss(PAIR, scores([[-1.0], [-1.0]]), None, Totals(1, 2, 2, 1))


@pytest.mark.parametrize(("denominator", "expected"), [("prompts", 4), ("pairs", 1)])
def test_dpo_divides_by_prompts_or_by_pairs(denominator: str, expected: int) -> None:
    same = scores([[-1.0, -2.0], [-3.0]])
    totals = Totals(prompts=4, rollouts=32, tokens=999, examples=1, chosen_tokens=2)
    for coefs, loss in (({}, math.log(2)), ({"nll_coef": 0.2, "entropy_coef": 0.1}, math.log(2) + 0.3 - 0.05)):
        for normalize in ("sequence", "token"):  # one completion: the same
            objective = DPO(denominator=denominator, nll_normalize=normalize, **coefs)
            assert objective.loss(PAIR, same, same, totals)[0].item() == pytest.approx(loss / expected, abs=1e-12)


def test_log_probs_are_averaged_over_tokens_if_asked() -> None:
    # Log-ratios a token: chosen -1.5 - -2 = 0.5, rejected -3 - -1 = -2. Margin 0.5 * 2.5 = 1.25.
    found, reference = scores([[-1.0, -2.0], [-3.0]]), scores([[-2.0, -2.0], [-1.0]])
    loss, metrics = DPO(beta=0.5, length_normalize=True).loss(PAIR, found, reference, Totals(1, 8, 9, 1))
    assert metrics["rewards/margins"] == pytest.approx(1.25, abs=1e-12)
    assert metrics["logps/chosen"] == pytest.approx(-1.5, abs=1e-12)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.25)), abs=1e-12)


# Two pairs; the chosen completions have 1 and 3 tokens, of 2 and of 1, 3 and 5 nats. Policy = reference.
TWO = [PAIR[0], Example((rollout(2), rollout(3)), is_chosen=(True, False))]
ROWS = [[-2.0], [-1.0, -4.0], [-1.0, -3.0, -5.0], [-0.5]]
TWO_TOTALS = Totals(prompts=5, rollouts=20, tokens=70, examples=2, chosen_tokens=4)


@pytest.mark.parametrize(
    ("options", "nll", "expected"),
    [
        ({"nll_normalize": "sequence"}, (2 + 3) / 2, (2 * math.log(2) + 0.5 * (2 + 3)) / 5),
        # over all chosen tokens (2 + 1 + 3 + 5) / 4, for each of two pairs
        ({"nll_normalize": "token"}, 11 / 4, (2 * math.log(2) + 0.5 * 2 * 11 / 4) / 5),
        ({"nll_normalize": "token", "denominator": "pairs"}, 11 / 4, math.log(2) + 0.5 * 11 / 4),
        ({"nll_normalize": "sequence", "denominator": "pairs"}, 5 / 2, math.log(2) + 0.5 * 5 / 2),
    ],
)
def test_long_completions_weigh_more_in_the_nll_if_asked(options: dict[str, Any], nll: float, expected: float) -> None:
    loss, metrics = DPO(nll_coef=0.5, **options).loss(TWO, scores(ROWS), scores(ROWS), TWO_TOTALS)
    assert metrics["nll_loss"] == pytest.approx(nll, abs=1e-12)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("nll_normalize", ["sequence", "token"])
@pytest.mark.parametrize("denominator", ["prompts", "pairs"])
@pytest.mark.parametrize("length_normalize", [False, True])
def test_shares_of_micro_batches_add_up(nll_normalize: str, denominator: str, length_normalize: bool) -> None:
    objective = DPO(
        beta=0.3, nll_coef=0.7, nll_normalize=nll_normalize, entropy_coef=0.1, length_normalize=length_normalize,
        denominator=denominator,
    )  # fmt: skip
    reference = [[value - 0.3 * i for value in row] for i, row in enumerate(ROWS)]
    whole, metrics = objective.loss(TWO, scores(ROWS), scores(reference), TWO_TOTALS)
    parts = [
        objective.loss([TWO[i]], scores(ROWS[rows]), scores(reference[rows]), TWO_TOTALS)
        for i, rows in ((0, slice(0, 2)), (1, slice(2, 4)))
    ]
    assert (parts[0][0] + parts[1][0]).item() == pytest.approx(whole.item(), abs=1e-12)
    means = {name: (parts[0][1][name] + parts[1][1][name]) / 2 for name in metrics}  # one pair each
    assert means == pytest.approx(metrics, abs=1e-12)
