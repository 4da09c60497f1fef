"""GroupDPO: who trains, as what, and its share of a step's loss, alone and with a GRPO term on the same completions."""

import math
from dataclasses import replace

import pytest
import torch

from kit.advantages import centered
from kit.importance import NoCorrection, PPOClip
from kit.objectives import GRPO, GroupDPO
from kit.types import Example, Totals
from tests.batches import group, rollout, scores


def selected(*rewards: float | None, objective: GroupDPO | None = None) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    found = (objective or GroupDPO()).select(group(*rewards), generator)
    assert len(found) <= 1
    if not found:
        assert torch.equal(generator.get_state(), state)
    return found


def test_all_that_were_judged_train_together() -> None:
    mixed = GroupDPO(grpo=GRPO(NoCorrection(), aggregate="sum", advantages=centered))
    [example] = selected(1.0, None, 0.0, 0.0, 0.0, objective=mixed)
    assert [one.text for one in example.rollouts] == ["0", "2", "3", "4"]
    assert example.is_chosen == (True, False, False, False)
    assert example.advantages == pytest.approx((0.75, -0.25, -0.25, -0.25))


@pytest.mark.parametrize("rewards", [(1.0, 1.0), (0.0, 0.0, 0.0), (None, 1.0), (None, None), (0.0, None, 0.0)])
def test_without_contrast_nothing_trains(rewards: tuple[float | None, ...]) -> None:
    assert selected(*rewards) == []


def test_graded_rewards_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards 0 or 1 .*came 0\.5"):
        selected(0.0, 0.5, 1.0)


def example(*is_chosen: bool, lengths: tuple[int, ...], advantages: tuple[float, ...]) -> Example:
    rollouts = tuple(rollout(i, length) for i, length in enumerate(lengths))
    return Example(rollouts, advantages, is_chosen)


# Two of four prompts. The first: chosen log-ratio 1, rejected -2 and 0. The second: chosen 0 and -1, rejected 0.
EXAMPLES = [
    example(True, False, False, lengths=(2, 1, 2), advantages=(1.0, -0.5, -0.5)),
    example(False, True, True, lengths=(1, 1, 3), advantages=(-2.0, 1.0, 1.0)),
]
ROWS = [[-1.0, -2.0], [-3.0], [-1.0, -1.0], [-2.0], [-1.0], [-1.0, -1.0, -2.0]]
REF_ROWS = [[-2.0, -2.0], [-1.0], [-1.0, -1.0], [-2.0], [-1.0], [-1.0, -1.0, -1.0]]
TOTALS = Totals(prompts=4, rollouts=16, tokens=50, examples=2, chosen_tokens=6)


def loss_of(margin: float) -> float:
    return math.log(1 + math.exp(-margin))  # -log sigma


# beta 1/2: margins 1.5 and 0.5; then 0 and -0.5. Means over each prompt's pairs.
GROUPS = (loss_of(1.5) + loss_of(0.5)) / 2, (loss_of(0.0) + loss_of(-0.5)) / 2


@pytest.mark.parametrize(("denominator", "divisor"), [("prompts", 4), ("pairs", 2)])
def test_each_prompt_weighs_the_same_however_many_pairs_it_has(denominator: str, divisor: int) -> None:
    objective = GroupDPO(beta=0.5, denominator=denominator)
    loss, metrics = objective.loss(EXAMPLES, scores(ROWS), scores(REF_ROWS), TOTALS)
    assert loss.item() == pytest.approx(sum(GROUPS) / divisor, abs=1e-12)
    assert metrics["rewards/margins"] == pytest.approx((1.0 - 0.25) / 2, abs=1e-12)  # means of 1.5, 0.5 and 0, -0.5
    assert metrics["logps/chosen"] == pytest.approx((-3.0 + (-1.0 - 4.0) / 2) / 2, abs=1e-12)


def test_the_grpo_term_runs_over_tokens_and_not_over_sequence_sums() -> None:
    # -A for each token, summed, over all 16 rollouts: -(2 * 1 - 1 * 0.5 - 2 * 0.5 - 1 * 2 + 1 * 1 + 3 * 1) = -2.5.
    objective = GroupDPO(beta=0.5, grpo_coef=0.1)
    loss, metrics = objective.loss(EXAMPLES, scores(ROWS), scores(REF_ROWS), TOTALS)
    assert loss.item() == pytest.approx(sum(GROUPS) / 4 + 0.1 * -2.5 / 16, abs=1e-12)
    assert metrics["policy_loss"] == pytest.approx(-2.5 / 16, abs=1e-12)


def test_the_gradient_is_that_of_each_token_once() -> None:
    found = scores(ROWS)
    found.logprobs.requires_grad_()
    loss, _ = GroupDPO(beta=0.5, grpo_coef=0.1).loss(EXAMPLES, found, scores(REF_ROWS), TOTALS)
    (gradient,) = torch.autograd.grad(loss, found.logprobs)
    # The chosen one of the first prompt: -beta (sigma(-1.5) + sigma(-0.5)) / 2 pairs / 4 prompts - 0.1 * 1 / 16, a
    # token. A sequence sum as log-prob, as in the authors' code, would have its second part twice, once a token.
    weights = 1 / (1 + math.exp(1.5)) + 1 / (1 + math.exp(0.5))
    assert gradient[0].tolist() == pytest.approx([-0.5 * weights / 8 - 0.1 / 16] * 2 + [0.0], abs=1e-12)


@pytest.mark.parametrize(
    "objective",
    [
        GroupDPO(beta=0.5),
        GroupDPO(beta=0.5, denominator="pairs", grpo_coef=0.2),
        GroupDPO(grpo_coef=0.2, grpo=GRPO(PPOClip(), aggregate="token")),
    ],
    ids=["alone", "with grpo", "with grpo by token"],
)
def test_shares_of_micro_batches_add_up(objective: GroupDPO) -> None:
    whole, _ = objective.loss(EXAMPLES, scores(ROWS), scores(REF_ROWS), TOTALS)
    parts = [
        objective.loss([EXAMPLES[i]], scores(ROWS[rows]), scores(REF_ROWS[rows]), TOTALS)[0]
        for i, rows in ((0, slice(0, 3)), (1, slice(3, 6)))
    ]
    assert (parts[0] + parts[1]).item() == pytest.approx(whole.item(), abs=1e-12)


def test_a_stale_grpo_term_is_corrected_and_group_dpo_is_not() -> None:
    # Sampled with twice the probability: ratio 1/2, clipped to 0.8 where the advantage is negative.
    stale = [
        replace(one, rollouts=tuple(replace(r, old_logprobs=tuple(x + math.log(2) for x in row)) for r, row in rows))
        for one, rows in zip(
            EXAMPLES,
            (list(zip(EXAMPLES[0].rollouts, ROWS[:3], strict=True)),
             list(zip(EXAMPLES[1].rollouts, ROWS[3:], strict=True))),
            strict=True,
        )
    ]  # fmt: skip
    objective = GroupDPO(beta=0.5, grpo_coef=0.1, grpo=GRPO(PPOClip(), aggregate="sum"))
    loss, _ = objective.loss(stale, scores(ROWS), scores(REF_ROWS), TOTALS)
    # -(0.5 (2 * 1 + 1 + 3) - 0.8 (0.5 + 1 + 2)) = -(3 - 2.8)
    assert loss.item() == pytest.approx(sum(GROUPS) / 4 + 0.1 * -0.2 / 16, abs=1e-8)


def test_without_a_reference_it_is_refused() -> None:
    with pytest.raises(ValueError, match="GroupDPO needs the reference's log-probs"):
        GroupDPO().loss(EXAMPLES, scores(ROWS), None, TOTALS)
