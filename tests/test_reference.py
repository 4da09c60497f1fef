"""The reference follows its own schedule, and no gradient reaches it."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from kit.models.policy import load_policy, score
from kit.models.weights import digest, weights_of
from kit.reference import Reference
from kit.sync import Every, Never, Schedule, WarmUp, WithSampler
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
    reference, found, digests = Reference(policy, schedule), [], [digest(weights_of(policy))]
    for step in range(7):
        was = reference.version
        assert reference.maybe_sync(policy, step, sampler_version=0) == (reference.version != was)
        found.append(reference.version)
        assert digest(reference.weights.tensors()) == digests[reference.version]
        move(policy)
        digests.append(digest(weights_of(policy)))
    assert found == versions


def test_with_the_sampler_the_reference_is_copied_at_the_same_steps(policy: PreTrainedModel) -> None:
    reference, versions = Reference(policy, WithSampler()), []
    for step, sampler_version in enumerate([0, 0, 2, 2, 2, 5, 6]):
        is_copied = reference.maybe_sync(policy, step, sampler_version)
        assert not is_copied or digest(reference.weights.tensors()) == digest(weights_of(policy))
        versions.append(reference.version)
        move(policy)
    assert versions == [0, 0, 2, 2, 2, 5, 6]


def set_all(model: PreTrainedModel, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_a_mixed_reference_is_a_moving_average(policy: PreTrainedModel) -> None:
    # From 8 a quarter of the way to 16: 10. Then a quarter of the way from there to -2: 7. All exact in float32.
    set_all(policy, 8.0)
    reference = Reference(policy, Every(1), mixup_alpha=0.25)
    for step, (target, expected) in enumerate([(16.0, 10.0), (-2.0, 7.0)], start=1):
        set_all(policy, target)
        assert reference.maybe_sync(policy, step, sampler_version=0)
        for parameter in reference.weights.model.parameters():
            assert torch.equal(parameter, torch.full_like(parameter, expected))
        assert all(torch.equal(p, torch.full_like(p, target)) for p in policy.parameters())
    assert reference.version == 2


def test_a_mixed_reference_computes_with_its_new_weights_and_takes_no_gradient(policy: PreTrainedModel) -> None:
    reference = Reference(policy, Every(1), mixup_alpha=0.5)
    before = reference.score(ROLLOUTS).logprobs
    move(policy)
    reference.maybe_sync(policy, 1, sampler_version=0)
    after = reference.score(ROLLOUTS).logprobs
    assert not torch.equal(after, before) and not after.requires_grad
    assert not any(parameter.requires_grad for parameter in reference.weights.model.parameters())


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused(policy: PreTrainedModel, alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"ref_mixup_alpha in \(0, 1\], came {alpha}"):
        Reference(policy, Every(1), mixup_alpha=alpha)


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
    assert all(p.grad is None for p in reference.weights.model.parameters())
    assert all(p.grad is not None for p in policy.parameters())
