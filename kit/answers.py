"""What the notebooks' exercises are checked against. **Not to be read before they are solved**: everything is here.

The reasons are in `notebooks/solutions`, which reach the same answers by other ways.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# 00_tour
SEED_STEPS = {"at ten": 10, "offline": 20}


def teaching_groups(rewards: Sequence[Sequence[float]]) -> int:
    return sum(len(set(group)) > 1 for group in rewards)


# 01_rewards
def digits_only(completions: Sequence[str], **columns: Any) -> list[float]:
    boxes = [re.search(r"\\boxed\{([^}]*)\}", text) for text in completions]
    return [-1.0 if box and not re.fullmatch(r"[+-]?\d+", box[1]) else 0.0 for box in boxes]


def cost_of_mixed(p: float, n: int) -> float:
    return n / (1 - p**n - (1 - p) ** n)


CHEAPEST_AT_10 = min((2, 4, 8, 16), key=lambda n: cost_of_mixed(0.1, n))


def bradley_terry(margins: Tensor) -> Tensor:
    return torch.nn.functional.softplus(-margins).mean()


# 02_dpo_loss
NATS_TO_A_HUNDREDTH = math.log(99) / 0.1


# 03_grpo_loss
def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    rows = zip(logprobs - old_logprobs, mask, strict=True)
    return torch.stack([row[keep].sum().exp() for row, keep in rows])


LOST_GRADIENTS = 2

# 04_sync_schedules
INTERVAL_OF_49 = 100
FIRST_WASTED = 6


# 05_one_run
def is_good(receipt: Mapping[str, Any]) -> bool:
    is_near = receipt["probe_parity"] <= receipt["probe_tolerance"]
    return is_near and receipt["digest"] == receipt["sampler_digest"] and receipt["prefix_cache_reset"]


def completions(records: Sequence[Mapping[str, float]], step: int) -> float:
    return sum(record["num_completions"] for record in records[: step + 1] if "num_completions" in record)


ENTROPY_METRIC = "eval/entropy"


# 06_regimes_compared
def differences(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


BEST_OF_TEN = 0.02 * 1.5388  # the expected maximum of ten standard normal draws

# 07_non_verifiable
AGAINST_ITSELF = 1.0
SAMPLES_TO_2_NATS = next(n for n in range(1, 99) if math.log(n) - (n - 1) / n >= 2)

# 08_multi_task
STEP_COMPLETIONS, STEP_TOKENS = 24 * 8 + 8 * 8, 24 * 8 * 48 + 8 * 8 * 80


def total(weights: Sequence[float], rewards: Sequence[float | None]) -> float | None:
    judged = [weight * reward for weight, reward in zip(weights, rewards, strict=True) if reward is not None]
    return sum(judged) if judged else None


# 09_training_dynamics
def pairs(correct: int, group_size: int) -> tuple[int, int]:
    found = [(right, wrong) for right in range(correct) for wrong in range(correct, group_size)]
    return len(found), len({index for pair in found for index in pair})


MOST_PAIRS_OF_8 = max(pairs(correct, 8)[0] for correct in range(9))


def mean_entropy(entropy: Tensor, completion_mask: Tensor) -> Tensor:
    return torch.where(completion_mask, entropy, 0.0).sum() / completion_mask.sum()


# 10_one_gpu
def merged(W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return W + alpha / A.shape[0] * torch.einsum("or,ri->oi", B, A)


BYTES_A_WEIGHT = 4 * (1 + 1 + 2 + 1 + 1)
GIGABYTES_OF_8B = 8 * BYTES_A_WEIGHT
RECEIPT_FIELD = "prefix_cache_reset"


# 11_full_run
def step_loss(losses: Sequence[Sequence[float]]) -> float:
    every = [loss for share in losses for loss in share]
    return sum(every) / len(every)


# 12_scorecard
def is_equal(low: float, high: float, margin: float) -> bool:
    return max(-low, high) < margin


FALSE_OF_55, ANY_OF_55 = 55 * 0.05, 1 - 0.95**55
EASIER_WITH = 3


# 13_bug_hunt
def sampler_is_another(records: Sequence[Mapping[str, float]]) -> bool:
    fresh = [record for record in records if record.get("sync/staleness") == 0 and "offpolicy/kl" in record]
    return any(record["offpolicy/kl"] > 1e-6 for record in fresh)


ZERO_AT_EQUAL = {"KL negated", "KL reversed"}
