"""A batch with everything that could go wrong, and a learner to train on it, for tests of one optimizer step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kit.config import RunConfig
from kit.learner import Learner
from kit.models.policy import load_policy
from kit.objectives import Objective
from kit.reference import Reference
from kit.sync import Never
from kit.types import Example, Group, Prompt, Rollout

REWARDS: list[tuple[float | None, ...]] = [
    (1.0, 0.0, 0.0, 1.0), (1.0, 1.0, 1.0, 1.0), (0.0, 1.0, None, 1.0), (0.0, 0.0, 0.0, 0.0), (1.0, 0.0, 1.0, None),
]  # fmt: skip


def logprobs_and_entropies(model: PreTrainedModel, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """By one plain forward pass."""
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(rollout.prompt_ids) - 1 : -1]
    logprobs = logits.log_softmax(-1)
    chosen = logprobs[torch.arange(len(rollout.completion_ids)), list(rollout.completion_ids)]
    return chosen, -(logprobs.exp() * logprobs).sum(-1)


@torch.no_grad()
def scored_groups(model: PreTrainedModel) -> list[Group]:
    """Completions of unequal length, as if sampled by a policy that was a little different."""
    generator, groups = torch.Generator().manual_seed(0), []
    for number, rewards in enumerate(REWARDS):
        prompt_ids, rollouts = (3, *range(20, 22 + number), 4), []
        for _ in rewards:
            length = int(torch.randint(1, 7, (), generator=generator))
            completion = tuple(torch.randint(5, 200, (length,), generator=generator).tolist())
            rollout = Rollout(prompt_ids, completion, (0.0,) * length, (0.0,) * length, "", "stop", 0)
            noise = 0.3 * torch.randn(length, generator=generator)
            rollouts.append(
                replace(rollout, old_logprobs=tuple((logprobs_and_entropies(model, rollout)[0] + noise).tolist()))
            )
        groups.append(Group(Prompt(str(number), "", {}), tuple(rollouts), rewards))
    return groups


def examples_of(objective: Objective, groups: list[Group]) -> list[Example]:
    generator = torch.Generator().manual_seed(1)
    return [example for group in groups for example in objective.select(group, generator)]


def make_learner(folder: Path, objective: Objective, **changes: Any) -> Learner:
    """In float64, with a reference apart from the policy and an update that is smooth in the gradient."""
    policy = load_policy(str(folder))[0].double()
    reference = Reference(policy, Never()) if objective.needs_reference else None
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    config = RunConfig(**({"max_grad_norm": 1e9, "adam_epsilon": 1.0, "learning_rate": 0.1} | changes))
    return Learner(policy, objective, reference, config)


def gradients(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Llama's norms and the sampler's log-probs are float32, whatever the model's type."""
    return found.shape == expected.shape and bool((found - expected).norm() <= 2e-6 * expected.norm())
