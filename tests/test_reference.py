"""The reference follows its own schedule, and no gradient reaches it."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from kit.models.policy import digest, load_policy, score
from kit.reference import Reference
from kit.sync import Every, Never, Schedule, WarmUp
from kit.types import Rollout

ROLLOUTS = [Rollout((3, 21, 4), (20, 21, 1), (0.0,) * 3, (0.0,) * 3, "", "stop", 0)]


@pytest.fixture
def policy(tiny_folder: Path) -> PreTrainedModel:
    return load_policy(str(tiny_folder))[0]


def move(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)


@pytest.mark.parametrize(
    ("schedule", "versions"),
    [
        (Never(), [0, 0, 0, 0, 0, 0, 0]),
        (Every(1), [0, 1, 2, 3, 4, 5, 6]),
        (Every(3), [0, 0, 0, 3, 3, 3, 6]),
        (WarmUp(1, 3, steps=4), [0, 0, 2, 2, 2, 5, 5]),  # intervals 1 2 2 3 3 3 at steps 0 to 5
    ],
)
def test_version_by_step(policy: PreTrainedModel, schedule: Schedule, versions: list[int]) -> None:
    reference, found, digests = Reference(policy, schedule), [], [digest(policy)]
    for step in range(7):
        was = reference.version
        assert reference.maybe_sync(policy, step) == (reference.version != was)
        found.append(reference.version)
        assert digest(reference.model) == digests[reference.version]
        move(policy)
        digests.append(digest(policy))
    assert found == versions


def test_reference_scores_as_the_policy_did_when_it_was_copied(policy: PreTrainedModel) -> None:
    expected = score(policy, ROLLOUTS).logprobs.detach()
    reference = Reference(policy, Never())
    move(policy)
    assert torch.equal(reference.score(ROLLOUTS).logprobs, expected)
    assert not torch.equal(score(policy, ROLLOUTS).logprobs, expected)


def test_reference_uses_the_temperature(policy: PreTrainedModel) -> None:
    found = Reference(policy, Never()).score(ROLLOUTS, temperature=0.5)
    assert torch.equal(found.logprobs, score(policy, ROLLOUTS, temperature=0.5).logprobs.detach())


def test_no_gradient_reaches_the_reference(policy: PreTrainedModel) -> None:
    reference = Reference(policy, Never())
    found = reference.score(ROLLOUTS)
    assert not found.logprobs.requires_grad and not found.entropy.requires_grad
    (score(policy, ROLLOUTS).logprobs - found.logprobs).sum().backward()  # enters a loss that has a gradient elsewhere
    assert all(p.grad is None for p in reference.model.parameters())
    assert all(p.grad is not None for p in policy.parameters())
