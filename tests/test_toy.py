"""The toy world against numbers by hand, and against sums that do not use its own shortcuts."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from kit.importance import IMPORTANCE, TIS, NoCorrection
from kit.losses import dpo_loss, grpo_loss
from kit.offpolicy import offpolicy_metrics
from kit.sync import Every, Never, OnDrift, WithSampler
from kit.toy import ToyState, ToyWorld, dpo_estimate, grpo_estimate, train


def nats(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


PAIRWISE = ToyWorld(nats([0.0, 0.0, 1.0], [0.0, 0.5, 0.0], [0.25, 0.0, 0.0]))  # vocabulary 3, length 2
TRIPLES = ToyWorld(torch.arange(8, dtype=torch.float64).view(2, 2, 2))  # vocabulary 2, length 3


def table(world: ToyWorld, seed: int, scale: float = 1.0) -> Tensor:
    """Some policy."""
    return scale * torch.randn(world.zeros().shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient_of(value: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(value, at)[0]


def test_sequences_and_the_rows_of_their_prefixes_by_hand() -> None:
    # Rows: 0 the empty prefix; 1, 2 the prefixes (0), (1); 3 to 6 the prefixes (00), (01), (10), (11).
    assert TRIPLES.sequences[5].tolist() == [1, 0, 1] and TRIPLES.rewards[5] == 5
    assert TRIPLES.rows.tolist() == [
        [0, 1, 3], [0, 1, 3], [0, 1, 4], [0, 1, 4], [0, 2, 5], [0, 2, 5], [0, 2, 6], [0, 2, 6],
    ]  # fmt: skip
    assert TRIPLES.zeros().shape == (7, 2)
    assert (TRIPLES.vocab, TRIPLES.length) == (2, 3)


def test_probabilities_rewards_and_entropy_by_hand() -> None:
    # P(0) = 3/4; after 0: 1/2, 1/2; after 1: 1/4, 3/4. So 3/8, 3/8, 1/16, 3/16; rewards 1, 2, 3, 4.
    world = ToyWorld(nats([1.0, 2.0], [3.0, 4.0]))
    logits = nats([3.0, 1.0], [1.0, 1.0], [1.0, 3.0]).log()
    assert world.probabilities(logits).tolist() == pytest.approx([3 / 8, 3 / 8, 1 / 16, 3 / 16], abs=1e-12)
    assert world.expected_reward(logits).item() == pytest.approx((6 + 12 + 3 + 12) / 16, abs=1e-12)
    # H = H(3/4) + 3/4 H(1/2) + 1/4 H(1/4), and H(1/4) = H(3/4) = 2 log 2 - 3/4 log 3
    entropy = 1.25 * (2 * math.log(2) - 0.75 * math.log(3)) + 0.75 * math.log(2)
    assert world.entropy(logits).item() == pytest.approx(entropy, abs=1e-12)
    # Against the uniform policy: KL = log 4 - H, and half of it a token
    assert world.kl(logits, world.zeros()).item() == pytest.approx(math.log(4) - entropy, abs=1e-12)
    assert world.kl(logits, world.zeros(), per_token=True).item() == pytest.approx(math.log(2) - entropy / 2, abs=1e-12)


def test_kl_is_a_mean_of_next_token_kls_on_the_policys_prefixes() -> None:
    logits, other = table(TRIPLES, 0), table(TRIPLES, 1)
    total = 0.0
    for prefix in itertools.chain.from_iterable(itertools.product(range(2), repeat=t) for t in range(3)):
        is_after = (TRIPLES.sequences[:, : len(prefix)] == torch.tensor(prefix, dtype=torch.long)).all(-1)
        row = int(TRIPLES.rows[is_after][0, len(prefix)])
        own, its = logits[row].softmax(-1), other[row].softmax(-1)
        total += (TRIPLES.probabilities(logits)[is_after].sum() * (own * (own / its).log()).sum()).item()
    assert TRIPLES.kl(logits, other).item() == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("world", [PAIRWISE, TRIPLES])
def test_policy_gradient_is_the_derivative_of_the_expected_reward(world: ToyWorld) -> None:
    logits = table(world, 2).requires_grad_()
    by_autograd = gradient_of(world.expected_reward(logits), logits)
    torch.testing.assert_close(world.policy_gradient(logits.detach()), by_autograd, rtol=1e-12, atol=1e-12)


def test_scores_are_the_derivatives_of_the_token_logprobs() -> None:
    logits = table(PAIRWISE, 3).requires_grad_()
    logprobs = PAIRWISE.logprobs(logits)
    for sequence, token in itertools.product(range(9), range(2)):
        (by_autograd,) = torch.autograd.grad(logprobs[sequence, token], logits, retain_graph=True)
        torch.testing.assert_close(PAIRWISE.scores(logits.detach())[sequence, token], by_autograd)


def test_exact_step_climbs() -> None:
    logits = table(PAIRWISE, 4)
    assert PAIRWISE.expected_reward(PAIRWISE.exact_step(logits, 0.5)) > PAIRWISE.expected_reward(logits)


def test_sampling_is_seeded_and_follows_the_probabilities() -> None:
    logits = table(PAIRWISE, 5)
    first, again = (PAIRWISE.sample(logits, 40_000, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    expected = PAIRWISE.probabilities(logits)
    error = (expected * (1 - expected) / len(first)).sqrt()
    assert ((first.bincount(minlength=9) / len(first) - expected).abs() < 5 * error).all()


def test_drift_is_what_the_run_measures_on_every_token_of_the_sampler() -> None:
    """A sampler of eighths, so that 64 rows hold each sequence in exact proportion."""
    world, policy = ToyWorld(nats([0.0, 1.0], [1.0, 0.0])), nats([2.0, 1.0], [1.0, 3.0], [5.0, 1.0]).log()
    sampler = nats([3.0, 1.0], [1.0, 1.0], [1.0, 3.0]).log()  # 3/8, 3/8, 1/16, 3/16
    rows = torch.tensor([0] * 6 + [1] * 6 + [2] + [3] * 3)
    measured = offpolicy_metrics(world.logprobs(policy)[rows].flatten(), world.logprobs(sampler)[rows].flatten())
    assert world.drift(policy, sampler).kl == pytest.approx(measured["offpolicy/kl"], abs=1e-12)
    assert world.drift(policy, sampler).m2 == pytest.approx(measured["offpolicy/m2"], abs=1e-12)


def test_nothing_beats_the_optimum() -> None:
    """Its value is beta log E_ref[e^(r/beta)]; every other policy falls short by beta times the KL to it."""
    reference, beta = table(PAIRWISE, 6), 0.3
    best = PAIRWISE.table(PAIRWISE.optimum(reference, beta))
    top = beta * (PAIRWISE.probabilities(reference) @ (PAIRWISE.rewards / beta).exp()).log().item()
    for seed, policy in enumerate([best, *(table(PAIRWISE, seed, 2.0) for seed in range(5))]):
        value = PAIRWISE.expected_reward(policy) - beta * PAIRWISE.kl(policy, reference)
        gap = beta * PAIRWISE.kl(policy, best)
        assert value.item() == pytest.approx(top - gap.item(), abs=1e-12), seed


def test_a_table_gives_back_the_probabilities_it_was_made_of() -> None:
    probabilities = PAIRWISE.probabilities(table(PAIRWISE, 8))
    torch.testing.assert_close(PAIRWISE.probabilities(PAIRWISE.table(probabilities)), probabilities)


@pytest.mark.parametrize("world", [PAIRWISE, TRIPLES])
@pytest.mark.parametrize("importance", sorted(IMPORTANCE))
def test_every_correction_estimates_the_policy_gradient_on_fresh_samples(world: ToyWorld, importance: str) -> None:
    logits = table(world, 9)
    assert grpo_estimate(world, logits, logits, importance).bias < 1e-12


def test_moments_are_those_of_one_loss_and_one_gradient_a_sequence() -> None:
    """Without the chain rule of the estimator: autograd through the table, a call of the loss for each sequence."""
    world, sampler = PAIRWISE, table(PAIRWISE, 11)
    logits, weights = table(PAIRWISE, 10).requires_grad_(), PAIRWISE.probabilities(sampler)
    advantages, mask = world.rewards - weights @ world.rewards, torch.ones(1, 2, dtype=torch.bool)
    draws = []
    for i in range(9):
        own, old = world.logprobs(logits)[[i]], world.logprobs(sampler)[[i]]
        loss, _ = grpo_loss(own, old, advantages[[i]], mask, importance=TIS(1.5), aggregate="sum")
        draws.append(gradient_of(-loss, logits))
    mean = sum(weight * draw for weight, draw in zip(weights, draws, strict=True))
    spread = sum(weight * (draw - mean).square().sum() for weight, draw in zip(weights, draws, strict=True))
    found = grpo_estimate(world, logits.detach(), sampler, TIS(1.5))
    torch.testing.assert_close(found.expectation, mean, rtol=1e-12, atol=1e-12)
    assert found.variance == pytest.approx(spread.item(), abs=1e-12)
    assert found.bias == pytest.approx((mean - world.policy_gradient(logits.detach())).norm().item(), abs=1e-12)


def test_a_tokens_ratio_is_exact_for_one_token_and_biased_for_more() -> None:
    single = ToyWorld(nats([0.0, 1.0, 0.5])[0])
    policy, sampler = table(single, 12), table(single, 13)
    assert grpo_estimate(single, policy, sampler, TIS(1e6)).bias < 1e-12
    assert grpo_estimate(single, policy, sampler, NoCorrection()).bias > 0.01
    policy, sampler = table(PAIRWISE, 12), table(PAIRWISE, 13)
    assert grpo_estimate(PAIRWISE, policy, sampler, TIS(1e6)).bias > 0.01


def test_second_pass_of_the_decoupled_clip_takes_its_weight_from_the_first() -> None:
    single, sampler = ToyWorld(nats([0.0, 1.0])[0]), nats([1.0, 1.0]).log()
    prox, policy = nats([1.0, 3.0]).log(), nats([1.0, 7.0]).log()  # second token: 1/2, 3/4, 7/8
    # Advantages -1/2, 1/2. r = (1/8)/(1/4) = 1/2 < 0.8 with A < 0: clipped. r = (7/8)/(3/4) = 7/6 < 1.2: not clipped,
    # weight (3/4)/(1/2) = 3/2; slope 3/2 * 7/6 * 1/2 = 7/8; times P = 1/2 and the score [-1/8, 1/8].
    found = grpo_estimate(single, policy, sampler, "decoupled", prox_logits=prox).expectation
    assert found.tolist() == [pytest.approx([-7 / 128, 7 / 128], abs=1e-12)]


def test_dpo_moments_are_those_of_one_loss_and_one_gradient_a_pair() -> None:
    world, sampler, reference = PAIRWISE, table(PAIRWISE, 14), table(PAIRWISE, 15)
    logits, mu = table(PAIRWISE, 16).requires_grad_(), PAIRWISE.probabilities(sampler)
    mean, square = torch.zeros_like(logits), torch.zeros((), dtype=torch.float64)
    for i, j in itertools.product(range(9), repeat=2):
        if world.rewards[i] == world.rewards[j]:
            continue
        pair = [i, j] if world.rewards[i] > world.rewards[j] else [j, i]
        own, ref = (world.logprobs(one).sum(-1)[pair].split(1) for one in (logits, reference))
        draw = gradient_of(-dpo_loss(*own, *ref, beta=0.5)[0], logits)
        mean, square = mean + mu[i] * mu[j] * draw, square + mu[i] * mu[j] * draw.square().sum()
    found = dpo_estimate(world, logits.detach(), sampler, reference, beta=0.5)
    torch.testing.assert_close(found.expectation, mean.detach(), rtol=1e-12, atol=1e-12)
    assert found.variance == pytest.approx((square - mean.square().sum()).item(), abs=1e-12)


def test_dpo_with_a_synced_reference_is_half_beta_times_the_policy_gradient_for_binary_rewards() -> None:
    """E[1[r != r'] (score_w - score_l)] = 2 E[(r - r') score] = 2 grad J for rewards 0 and 1; each times beta / 2."""
    world = ToyWorld((PAIRWISE.rewards_by_token == 1).double())
    logits = table(world, 17)
    found = dpo_estimate(world, logits, logits, logits, beta=0.2).expectation
    torch.testing.assert_close(found, 0.2 * world.policy_gradient(logits), rtol=1e-12, atol=1e-12)


def exact(state: ToyState) -> Tensor:
    return PAIRWISE.policy_gradient(state.logits)


def test_training_repeats_the_exact_step() -> None:
    run = train(PAIRWISE, exact, Every(1), steps=3, learning_rate=0.5)
    logits = PAIRWISE.zeros()
    for _ in range(3):
        logits = PAIRWISE.exact_step(logits, 0.5)
    assert torch.equal(run.states[-1].logits, logits)
    assert run.rewards[0] == pytest.approx(1.75 / 9) and run.rewards[-1] == PAIRWISE.expected_reward(logits).item()


def test_sampler_and_reference_hold_what_their_schedules_say() -> None:
    run = train(PAIRWISE, exact, Every(3), steps=7, learning_rate=0.5, ref_schedule=WithSampler())
    assert run.staleness == [0, 1, 2, 0, 1, 2, 0, 1] and run.syncs == [3, 6]
    assert torch.equal(run.states[5].sampler_logits, run.states[3].logits)
    assert all(torch.equal(state.ref_logits, state.sampler_logits) for state in run.states)
    assert run.drifts[3] == 0 and run.drifts[5] > run.drifts[4] > 0


def test_a_batch_serves_several_steps_and_keeps_the_policy_before_its_first() -> None:
    run = train(PAIRWISE, exact, Every(1), steps=6, learning_rate=0.5, reuse_epochs=3)
    assert [state.batch for state in run.states] == [0, 0, 0, 1, 1, 1, 2] and run.syncs == [3]
    assert torch.equal(run.states[5].prox_logits, run.states[3].logits)


def test_averaged_reference_by_hand() -> None:
    run = train(PAIRWISE, exact, Never(), steps=3, learning_rate=0.5, ref_schedule=Every(1), ref_mixup_alpha=0.25)
    # ref_1 = z1 / 4 (z0 is 0), ref_2 = 3/4 ref_1 + z2 / 4
    first, second = run.states[1].logits, run.states[2].logits
    torch.testing.assert_close(run.states[2].ref_logits, 0.1875 * first + 0.25 * second)


def test_drift_schedule_syncs_once_the_bound_is_passed() -> None:
    run = train(PAIRWISE, exact, OnDrift(max_kl=1e-3), steps=20, learning_rate=0.5)
    assert run.syncs
    for step in range(1, 20):
        state = run.states[step - 1]
        is_far = PAIRWISE.drift(run.states[step].logits, state.sampler_logits).kl > 1e-3
        assert (step in run.syncs) == is_far


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        (torch.zeros(2, 3), "vocab, ..., vocab"),
        (torch.zeros(1), "vocab >= 2"),
        (torch.tensor(1.0), "vocab, ..., vocab"),
        (torch.zeros(*[9] * 4), "at most 4096 sequences, came 6561"),
    ],
)
def test_worlds_that_cannot_be_are_refused(rewards: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ToyWorld(rewards)


def test_bad_constants_are_refused() -> None:
    with pytest.raises(ValueError, match="beta > 0, came 0"):
        PAIRWISE.optimum(PAIRWISE.zeros(), 0.0)
    with pytest.raises(ValueError, match="9 positive probabilities"):
        PAIRWISE.table(torch.full((9,), 0.2, dtype=torch.float64))
