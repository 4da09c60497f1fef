"""Which rollouts train, as what, and how a micro-batch's share of the loss is divided."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from kit.advantages import centered, leave_one_out, standardized
from kit.importance import M2PO, TIS, DecoupledPPO, NoCorrection, PPOClip
from kit.kl import KLEstimator, k1, k2, k3
from kit.objectives import DPO, GRPO, OBJECTIVES, GroupDPO, Objective, rewards_tensor
from kit.pairing import all_pairs, best_worst, first_correct_incorrect
from kit.types import Example, Rollout, Totals
from tests.batches import group, rollout, scores


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
    assert picked(DPO(pairing=first_correct_incorrect), 0.0, 1.0, 0.0, 1.0) == [[1, 0]]


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


@pytest.mark.parametrize(("objective", "name"), [(DPO(), "DPO"), (GRPO(), "GRPO"), (GroupDPO(), "GroupDPO")])
def test_a_group_of_one_is_refused(objective: Objective, name: str) -> None:
    objective.check(2)
    with pytest.raises(ValueError, match=rf"group_size must be at least 2 under {name}.*got 1"):
        objective.check(1)


NEEDS = ["needs_reference", "needs_old_logprobs", "needs_prox_logprobs", "needs_fit"]


@pytest.mark.parametrize(
    ("objective", "needed"),
    [
        (DPO(nll_coef=0.1), NEEDS[:1]),
        (GroupDPO(), NEEDS[:1]),
        (GroupDPO(grpo_coef=0.1), NEEDS[:1]),  # its GRPO term takes every sample for a fresh one
        (GroupDPO(grpo=GRPO(M2PO())), NEEDS[:1]),  # a term of weight 0 is not computed
        (GroupDPO(grpo_coef=0.1, grpo=GRPO(TIS())), NEEDS[:2]),
        (GroupDPO(grpo_coef=0.1, grpo=GRPO(DecoupledPPO())), NEEDS[:3]),
        (GroupDPO(grpo_coef=0.1, grpo=GRPO(M2PO())), [*NEEDS[:2], NEEDS[3]]),
        (GRPO(), NEEDS[1:2]),
        (GRPO(NoCorrection()), []),
        (GRPO(NoCorrection(), kl_coef=0.01), NEEDS[:1]),
        (GRPO(DecoupledPPO()), NEEDS[1:3]),
        (GRPO(M2PO()), [NEEDS[1], NEEDS[3]]),
    ],
)
def test_an_objective_asks_for_what_it_reads_and_for_nothing_else(objective: Objective, needed: list[str]) -> None:
    assert [name for name in NEEDS if getattr(objective, name)] == needed


@pytest.mark.parametrize("objective", [DPO(), GRPO(), GRPO(TIS()), GroupDPO(), GroupDPO(grpo_coef=0.1)])
def test_most_objectives_learn_nothing_from_the_ratios_of_a_step(objective: Objective) -> None:
    assert objective.fitted(torch.tensor([0.1, -3.0])) == objective


def test_m2po_within_an_objective_learns_its_bound_from_a_step() -> None:
    # Squares 1/64 and 9, within 0.04 is the first alone: the bound lies halfway between 1/8 and 3.
    log_ratios = torch.tensor([0.125, -3.0])
    assert GRPO(M2PO(), kl_coef=0.1).fitted(log_ratios) == GRPO(M2PO(bound=1.5625), kl_coef=0.1)
    mixed = GroupDPO(grpo_coef=0.1, grpo=GRPO(M2PO()))
    assert mixed.fitted(log_ratios) == GroupDPO(grpo_coef=0.1, grpo=GRPO(M2PO(bound=1.5625)))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DPO(beta=0.0), r"DPO\.beta"),
        (lambda: DPO(beta=-1.0), r"DPO\.beta"),
        (lambda: DPO(beta=math.nan), r"DPO\.beta"),
        (lambda: DPO(nll_coef=-0.1), r"DPO\.nll_coef"),
        (lambda: DPO(entropy_coef=-0.1), r"DPO\.entropy_coef"),
        (lambda: GRPO(kl_coef=-0.1), r"GRPO\.kl_coef"),
        (lambda: GRPO(entropy_coef=-0.1), r"GRPO\.entropy_coef"),
        (lambda: DPO(nll_normalize="none"), r"DPO\.nll_normalize must be one of \['sequence', 'token'\]"),
        (lambda: DPO(denominator="groups"), r"DPO\.denominator must be one of \['pairs', 'prompts'\]"),
        (lambda: GRPO(aggregate="tokens"), "tokens"),
        (lambda: GRPO(aggregate="constant"), r"GRPO\.max_completion_length .*got None"),
        (lambda: GRPO(aggregate="constant", max_completion_length=0), r"GRPO\.max_completion_length .*got 0"),
        (lambda: GRPO(aggregate="sum", max_completion_length=9), r"GRPO\.max_completion_length .*got 9"),
        (lambda: GroupDPO(beta=0.0), r"GroupDPO\.beta"),
        (lambda: GroupDPO(grpo_coef=-0.1), r"GroupDPO\.grpo_coef"),
        (lambda: GroupDPO(grpo_coef=math.nan), r"GroupDPO\.grpo_coef"),
        (lambda: GroupDPO(grpo=GRPO(kl_coef=0.1)), r"GroupDPO\.grpo\.kl_coef must be 0"),
        (lambda: GroupDPO(denominator="groups"), r"GroupDPO\.denominator"),
    ],
)
def test_a_wrong_constant_is_refused_when_the_objective_is_made(make: partial[Objective], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make()


def test_objective_table_makes_the_objective_it_names() -> None:
    assert (OBJECTIVES["dpo"](beta=0.3), OBJECTIVES["grpo"](kl_coef=0.2)) == (DPO(beta=0.3), GRPO(kl_coef=0.2))
    assert OBJECTIVES["group_dpo"](grpo_coef=0.1) == GroupDPO(grpo_coef=0.1)


# Two of 8 rollouts, with 1 and 3 of 40 tokens, advantages 1 and -2, sampled by the policy itself (ratio 1).
ON_POLICY = [
    Example((rollout(0, length=1, old=-1.0),), (1.0,)), Example((rollout(1, length=3, old=-2.0),), (-2.0,)),
]  # fmt: skip
ON_POLICY_SCORES = scores([[-1.0], [-2.0, -2.0, -2.0]])
TOTALS = Totals(prompts=2, rollouts=8, tokens=40, examples=2)


def grpo_of(aggregate: str, **constants: float) -> GRPO:
    return GRPO(aggregate=aggregate, max_completion_length=10 if aggregate == "constant" else None, **constants)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("sequence", (-1.0 + 2.0) / 8),  # token means, over all rollouts of the step
        ("sum", (-1.0 + 3 * 2.0) / 8),  # token sums, likewise
        ("token", (-1.0 + 3 * 2.0) / 40),  # over all tokens of the step
        ("constant", (-1.0 + 3 * 2.0) / (8 * 10)),  # token sums over the longest length, over all rollouts
    ],
)
def test_grpo_divides_by_all_rollouts_or_all_tokens_of_the_step(aggregate: str, expected: float) -> None:
    loss, _ = grpo_of(aggregate).loss(ON_POLICY, ON_POLICY_SCORES, None, TOTALS)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("aggregate", ["sequence", "sum", "token", "constant"])
@pytest.mark.parametrize(("kl_coef", "entropy_coef"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2)])
def test_shares_of_micro_batches_add_up(aggregate: str, kl_coef: float, entropy_coef: float) -> None:
    objective = grpo_of(aggregate, kl_coef=kl_coef, entropy_coef=entropy_coef)
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


@pytest.mark.parametrize("aggregate", ["sequence", "sum", "token", "constant"])
def test_grpo_rewards_entropy_by_hand(aggregate: str) -> None:
    # Entropies 2 and, of three tokens, 1, 0, 5: sequence means 2 and 2, over the 8 rollouts of the step: 4 / 8.
    found = replace(ON_POLICY_SCORES, entropy=torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 5.0]]))
    plain, _ = grpo_of(aggregate).loss(ON_POLICY, found, None, TOTALS)
    loss, _ = grpo_of(aggregate, entropy_coef=0.3).loss(ON_POLICY, found, None, TOTALS)
    assert (loss - plain).item() == pytest.approx(-0.3 * 4 / 8, abs=1e-7)


def test_with_an_entropy_bonus_groups_of_equal_rewards_train_too() -> None:
    assert [len(picked(GRPO(entropy_coef=coef), 1.0, 1.0)) for coef in (0.0, 0.1)] == [0, 2]


def test_grpo_reads_old_logprobs_row_by_row() -> None:
    # Ratios e^0.1 and e^-0.1, e^0, e^0.2, none clipped at 0.5; advantages 1 and -2; token means over 2 rollouts.
    examples = [
        Example((Rollout((3,), (5,), (-1.1,), (0.0,), "", "stop", 0),), (1.0,)),
        Example((Rollout((3,), (5, 6, 7), (-1.9, -2.0, -2.2), (0.0,) * 3, "", "stop", 0),), (-2.0,)),
    ]
    loss, _ = GRPO(PPOClip(0.5)).loss(examples, ON_POLICY_SCORES, None, Totals(1, 2, 4, 2))
    expected = (-math.exp(0.1) + 2 * (math.exp(-0.1) + 1 + math.exp(0.2)) / 3) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("estimator", "kl"), [(k1, 0.3), (k2, 0.045), (k3, math.exp(-0.3) + 0.3 - 1)], ids=["k1", "k2", "k3"]
)
def test_grpo_estimates_the_kl_as_it_is_told(estimator: KLEstimator, kl: float) -> None:
    # log pi - log pi_ref = -1 + 1.3 = 0.3 at a token of ratio 1 and advantage 1, over 2 rollouts.
    example = [Example((rollout(0, length=1),), (1.0,))]
    objective = GRPO(kl_coef=0.5, kl_estimator=estimator)
    loss, metrics = objective.loss(example, scores([[-1.0]]), scores([[-1.3]]), Totals(1, 2, 2, 1))
    assert metrics["kl"] == pytest.approx(kl, abs=1e-12)
    assert loss.item() == pytest.approx((-1.0 + 0.5 * kl) / 2, abs=1e-12)


def test_grpo_takes_the_recent_policy_from_the_rollouts_and_without_one_for_the_policy() -> None:
    # pi / pi_old = e^0.5; pi_prox / pi_old = e^0.2. In the first pass the ratio is not clipped, then at 1.2 e^0.2.
    later = Rollout((3,), (5,), (-1.5,), (0.0,), "", "stop", 0, prox_logprobs=(-1.3,))
    for one, expected in ((rollout(0, length=1, old=-1.5), -math.exp(0.5)), (later, -1.2 * math.exp(0.2))):
        loss, _ = GRPO(DecoupledPPO(0.2)).loss([Example((one,), (1.0,))], scores([[-1.0]]), None, Totals(1, 1, 1, 1))
        assert loss.item() == pytest.approx(expected, abs=1e-6)
