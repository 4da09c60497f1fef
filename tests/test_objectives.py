"""Which rollouts train, as what, and how a micro-batch's share of the loss is divided."""

import math
from collections.abc import Sequence
from functools import partial

import pytest
import torch

from kit.advantages import centered, leave_one_out, standardized
from kit.importance import PPOClip
from kit.objectives import DPO, GRPO, OBJECTIVES, rewards_tensor
from kit.pairing import all_pairs, best_worst
from kit.types import Example, Group, Prompt, Rollout, TokenScores, Totals

PROMPT = Prompt("p", "1+1=", {})


def rollout(index: int, length: int = 2, old: float = -1.0) -> Rollout:
    return Rollout((3, 4), (index + 5,) * length, (old,) * length, (0.0,) * length, str(index), "stop", 0)


def group(*rewards: float | None) -> Group:
    return Group(PROMPT, tuple(rollout(i) for i in range(len(rewards))), rewards)


def scores(rows: Sequence[Sequence[float]], entropy: float = 0.5) -> TokenScores:
    """Log-probs of rows of unequal length, padded with a number that must not matter."""
    width = max(len(row) for row in rows)
    logprobs = torch.tensor([[*row, *[7.0] * (width - len(row))] for row in rows], dtype=torch.float64)
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in rows])
    return TokenScores(logprobs, torch.full_like(logprobs, entropy), mask)


def picked(objective: DPO | GRPO, *rewards: float | None, seed: int = 0) -> list[list[int]]:
    """The selected examples as indices into the group."""
    examples = objective.select(group(*rewards), torch.Generator().manual_seed(seed))
    return [[int(r.text) for r in example.rollouts] for example in examples]


def test_dpo_pairs_a_correct_with_an_incorrect_completion() -> None:
    for seed in range(50):
        [[chosen, rejected]] = picked(DPO(), 0.0, 1.0, 0.0, 1.0, seed=seed)
        assert chosen in (1, 3) and rejected in (0, 2)


def test_dpo_chooses_each_pair_equally_often() -> None:
    generator, counts = torch.Generator().manual_seed(0), dict.fromkeys([(0, 2), (0, 3), (1, 2), (1, 3)], 0)
    for _ in range(2000):
        [example] = DPO().select(group(1.0, 1.0, 0.0, 0.0), generator)
        counts[int(example.rollouts[0].text), int(example.rollouts[1].text)] += 1
    assert all(abs(count / 2000 - 0.25) <= 5 * math.sqrt(0.25 * 0.75 / 2000) for count in counts.values())


@pytest.mark.parametrize("rewards", [(1.0, 1.0, 1.0), (0.0, 0.0), (None, None), (None, 1.0, None), (0.0, None)])
def test_dpo_selects_nothing_without_contrast(rewards: tuple[float | None, ...]) -> None:
    assert picked(DPO(), *rewards) == []


def test_dpo_never_trains_on_a_rollout_that_nobody_judged() -> None:
    for seed in range(30):
        assert picked(DPO(), None, 1.0, None, 0.0, None, seed=seed) == [[1, 3]]


def test_dpo_refuses_graded_rewards_and_names_the_pairing_for_them() -> None:
    with pytest.raises(ValueError, match="use best_worst"):
        picked(DPO(), 0.3, 0.7)


def test_every_pairing_of_the_kit_works_in_dpo() -> None:
    assert picked(DPO(pairing=best_worst), 0.3, 0.9, 0.1) == [[1, 2]]
    assert picked(DPO(pairing=all_pairs), 1.0, 0.0, 1.0) == [[0, 1], [2, 1]]


def test_rewards_become_not_a_number_where_nobody_judged() -> None:
    found = rewards_tensor(group(1.0, None, 0.25)).tolist()
    assert (found[0], found[2]) == (1.0, 0.25) and math.isnan(found[1])


def test_grpo_trains_on_every_judged_rollout_with_its_advantage() -> None:
    examples = GRPO(advantages=centered).select(group(1.0, None, 0.0, 0.0, 0.0), torch.Generator())
    assert [int(e.rollouts[0].text) for e in examples] == [0, 2, 3, 4]
    assert [e.advantages[0] for e in examples] == pytest.approx([0.75, -0.25, -0.25, -0.25])


@pytest.mark.parametrize(
    ("advantages", "expected"),
    [
        (centered, [0.5, -0.5, 0.5, -0.5]),
        (leave_one_out, [2 / 3, -2 / 3, 2 / 3, -2 / 3]),  # 1 - (0 + 1 + 0) / 3
        (standardized, [math.sqrt(3) / 2, -math.sqrt(3) / 2] * 2),  # 0.5 over sqrt(4 * 0.25 / 3)
        (partial(standardized, eps=0.0), [math.sqrt(3) / 2, -math.sqrt(3) / 2] * 2),
    ],
)
def test_grpo_uses_the_advantages_it_is_given(advantages: partial[torch.Tensor], expected: list[float]) -> None:
    examples = GRPO(advantages=advantages).select(group(1.0, 0.0, 1.0, 0.0), torch.Generator())
    assert [e.advantages[0] for e in examples] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rewards", [(1.0, 1.0, 1.0), (0.0, 0.0), (0.1, 0.1, 0.1), (None, None), (None, 1.0)])
def test_grpo_selects_nothing_from_equal_rewards(rewards: tuple[float | None, ...]) -> None:
    assert picked(GRPO(), *rewards) == []


def test_grpo_with_a_kl_term_trains_on_equal_rewards_too() -> None:
    examples = GRPO(kl_coef=0.1).select(group(1.0, 1.0, None), torch.Generator())
    assert [(int(e.rollouts[0].text), e.advantages) for e in examples] == [(0, (0.0,)), (1, (0.0,))]


@pytest.mark.parametrize(("objective", "name"), [(DPO(), "DPO"), (GRPO(), "GRPO"), (GRPO(kl_coef=0.1), "GRPO")])
def test_a_group_of_one_is_refused(objective: DPO | GRPO, name: str) -> None:
    objective.check(2)
    with pytest.raises(ValueError, match=rf"group_size must be at least 2 under {name}.*got 1"):
        objective.check(1)


def test_only_what_reads_the_reference_needs_it() -> None:
    assert [o.needs_reference for o in (DPO(), GRPO(), GRPO(kl_coef=0.01))] == [True, False, True]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DPO(beta=0.0), r"DPO\.beta"),
        (lambda: DPO(beta=-1.0), r"DPO\.beta"),
        (lambda: DPO(beta=math.nan), r"DPO\.beta"),
        (lambda: DPO(nll_coef=-0.1), r"DPO\.nll_coef"),
        (lambda: DPO(entropy_coef=-0.1), r"DPO\.entropy_coef"),
        (lambda: GRPO(kl_coef=-0.1), r"GRPO\.kl_coef"),
        (lambda: GRPO(aggregate="tokens"), "tokens"),
    ],
)
def test_a_wrong_constant_is_refused_when_the_objective_is_made(make: partial[DPO | GRPO], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make()


def test_objective_table_makes_the_objective_it_names() -> None:
    assert (OBJECTIVES["dpo"](beta=0.3), OBJECTIVES["grpo"](kl_coef=0.2)) == (DPO(beta=0.3), GRPO(kl_coef=0.2))


PAIR = [Example((rollout(0), rollout(1)))]


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


# Two of 8 rollouts, with 1 and 3 of 40 tokens, advantages 1 and -2, sampled by the policy itself (ratio 1).
ON_POLICY = [
    Example((rollout(0, length=1, old=-1.0),), (1.0,)), Example((rollout(1, length=3, old=-2.0),), (-2.0,)),
]  # fmt: skip
ON_POLICY_SCORES = scores([[-1.0], [-2.0, -2.0, -2.0]])
TOTALS = Totals(prompts=2, rollouts=8, tokens=40, examples=2)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("sequence", (-1.0 + 2.0) / 8),  # token means, over all rollouts of the step
        ("sum", (-1.0 + 3 * 2.0) / 8),  # token sums, likewise
        ("token", (-1.0 + 3 * 2.0) / 40),  # over all tokens of the step
    ],
)
def test_grpo_divides_by_all_rollouts_or_all_tokens_of_the_step(aggregate: str, expected: float) -> None:
    loss, _ = GRPO(aggregate=aggregate).loss(ON_POLICY, ON_POLICY_SCORES, None, TOTALS)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("aggregate", ["sequence", "sum", "token"])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_shares_of_micro_batches_add_up(aggregate: str, kl_coef: float) -> None:
    objective = GRPO(aggregate=aggregate, kl_coef=kl_coef)
    rows, reference = [[-1.1], [-2.3, -1.5, -2.2]], [[-1.4], [-2.0, -2.0, -1.0]]
    whole, _ = objective.loss(ON_POLICY, scores(rows), scores(reference) if kl_coef else None, TOTALS)
    parts = [
        objective.loss([example], scores([row]), scores([ref]) if kl_coef else None, TOTALS)[0]
        for example, row, ref in zip(ON_POLICY, rows, reference, strict=True)
    ]
    assert (parts[0] + parts[1]).item() == pytest.approx(whole.item(), abs=1e-12)


def test_grpo_clips_and_adds_the_kl_by_hand() -> None:
    # One token, ratio e^(-1 + 1.5) = 1.6487, clipped to 1.2; advantage 1. k3 with d = -1.3 + 1: e^-0.3 + 0.3 - 1.
    example = [Example((rollout(0, length=1, old=-1.5),), (1.0,))]
    loss, metrics = GRPO(kl_coef=0.5).loss(example, scores([[-1.0]]), scores([[-1.3]]), Totals(1, 2, 2, 1))
    assert metrics["kl"] == pytest.approx(0.0408182206817179, abs=1e-12)
    assert loss.item() == pytest.approx((-1.2 + 0.5 * 0.0408182206817179) / 2, abs=1e-7)
    assert metrics["clip_ratio/high_mean"] == 1.0


def test_grpo_reads_old_logprobs_row_by_row() -> None:
    # Ratios e^0.1 and e^-0.1, e^0, e^0.2, none clipped at 0.5; advantages 1 and -2; token means over 2 rollouts.
    examples = [
        Example((Rollout((3,), (5,), (-1.1,), (0.0,), "", "stop", 0),), (1.0,)),
        Example((Rollout((3,), (5, 6, 7), (-1.9, -2.0, -2.2), (0.0,) * 3, "", "stop", 0),), (-2.0,)),
    ]
    loss, _ = GRPO(PPOClip(0.5)).loss(examples, ON_POLICY_SCORES, None, Totals(1, 2, 4, 2))
    expected = (-math.exp(0.1) + 2 * (math.exp(-0.1) + 1 + math.exp(0.2)) / 3) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)
