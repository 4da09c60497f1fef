"""The reference follows its own schedule, and no gradient reaches it."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kit.config import Lora
from kit.models.adapters import save_adapter
from kit.models.policy import load_policy, score
from kit.models.weights import digest, weights_of
from kit.objectives import GRPO
from kit.reference import Reference, ReferenceStart
from kit.run import Run
from kit.runlog import read_jsonl
from kit.sync import Every, Never, Schedule, WarmUp, WithSampler
from kit.types import Rollout
from tests.conftest import untimed

LORA = Lora(lora_r=2, lora_alpha=6.0, lora_target_modules=("q_proj", "down_proj"))
ROLLOUTS = [Rollout((3, 21, 4), (20, 21, 1), (0.0,) * 3, (0.0,) * 3, "", "stop", 0)]


@pytest.fixture
def policy(tiny_folder: Path) -> PreTrainedModel:
    return load_policy(str(tiny_folder))[0]


@pytest.fixture
def adapted(tiny_folder: Path) -> PreTrainedModel:
    """A policy that starts from a trained adapter."""
    policy, _ = load_policy(str(tiny_folder), lora=LORA)
    add_noise(policy, seed=1)
    return policy


def move(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)


@torch.no_grad()
def add_noise(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for tensor in weights_of(model).values():
        tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.2)


def values(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


@torch.no_grad()
def by_hand(folder: Path, adapter: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Log-probs of the model with W + (6 / 2) B A in place of W."""
    model, _ = load_policy(str(folder))
    for name in {name.split(".lora_")[0] for name in adapter}:
        a, b = (adapter[f"{name}.lora_{factor}.weight"] for factor in "AB")
        model.get_parameter(f"{name}.weight").add_((6.0 / 2) * b @ a)
    return score(model, ROLLOUTS).logprobs


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


@pytest.mark.parametrize("schedule", [Never(), Every(3), WithSampler()])
def test_with_adapters_the_reference_is_the_adapter_of_its_version(
    tiny_folder: Path, adapted: PreTrainedModel, schedule: Schedule
) -> None:
    reference, found, history = Reference(adapted, schedule), [], [values(weights_of(adapted))]
    for step, sampler_version in enumerate([0, 0, 2, 2, 4]):
        reference.maybe_sync(adapted, step, sampler_version)
        found.append(reference.version)
        expected = by_hand(tiny_folder, history[reference.version])
        torch.testing.assert_close(reference.score(ROLLOUTS).logprobs, expected, rtol=0, atol=1e-4)
        add_noise(adapted, seed=step + 2)
        history.append(values(weights_of(adapted)))
    assert found == {Never(): [0, 0, 0, 0, 0], Every(3): [0, 0, 0, 3, 3], WithSampler(): [0, 0, 2, 2, 4]}[schedule]


@pytest.mark.parametrize("start", ["policy", "base"])
def test_with_adapters_an_average_is_of_both_factors(
    tiny_folder: Path, adapted: PreTrainedModel, start: ReferenceStart
) -> None:
    reference = Reference(adapted, Every(1), mixup_alpha=0.25, start=start)
    expected = values(weights_of(adapted))
    if start == "base":
        expected = {name: 0 * tensor if "lora_B" in name else tensor for name, tensor in expected.items()}
    for step in (1, 2):
        add_noise(adapted, seed=step + 1)
        now = weights_of(adapted)
        expected = {name: (0.75 * tensor + 0.25 * now[name]).detach() for name, tensor in expected.items()}
        assert reference.maybe_sync(adapted, step, sampler_version=0)
        for name, tensor in reference.weights.tensors().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
        found = reference.score(ROLLOUTS).logprobs
        torch.testing.assert_close(found, by_hand(tiny_folder, expected), rtol=0, atol=1e-4)


def test_the_base_is_the_model_without_the_adapter_until_the_first_sync(
    tiny_folder: Path, policy: PreTrainedModel, adapted: PreTrainedModel
) -> None:
    reference, was = Reference(adapted, Every(2), start="base"), digest(weights_of(adapted))
    with torch.no_grad():
        assert torch.equal(reference.score(ROLLOUTS).logprobs, score(policy, ROLLOUTS).logprobs)
        assert not torch.equal(Reference(adapted, Never()).score(ROLLOUTS).logprobs, score(policy, ROLLOUTS).logprobs)
    assert digest(weights_of(adapted)) == was
    assert not reference.maybe_sync(adapted, 1, sampler_version=0) and reference.maybe_sync(adapted, 2, 0)
    torch.testing.assert_close(
        reference.score(ROLLOUTS).logprobs, by_hand(tiny_folder, weights_of(adapted)), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("start", ["base", "seed"])
def test_a_start_that_means_nothing_is_refused(policy: PreTrainedModel, start: Any, _shapes_unchecked: None) -> None:
    words = {"base": "with all weights in training there is no model apart", "seed": "one of .*'base'.*, came 'seed'"}
    with pytest.raises(ValueError, match=words[start]):
        Reference(policy, Never(), start=start)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, r"means nothing without an adapter \(RunConfig.lora\)"),
        ({"lora": LORA, "objective": GRPO()}, "means nothing without a reference in the objective"),
    ],
)
def test_a_run_refuses_a_base_that_means_nothing(
    start: Callable[..., Run], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        start(tmp_path, ref_start="base", **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ref_start", ["policy", "base"])
def test_a_run_from_a_trained_adapter_keeps_the_reference_it_was_asked_for(
    start: Callable[..., Run], tiny_folder: Path, tmp_path: Path, adapted: PreTrainedModel, ref_start: ReferenceStart
) -> None:
    save_adapter(weights_of(adapted), adapted.peft_config["policy"], tmp_path / "adapter")  # pyright: ignore[reportArgumentType]
    lora = Lora(2, 6.0, adapter_path=str(tmp_path / "adapter"))
    expected = by_hand(tiny_folder, weights_of(adapted))
    if ref_start == "base":
        expected = score(load_policy(str(tiny_folder))[0], ROLLOUTS).logprobs.detach()
    made = partial(start, lora=lora, ref_start=ref_start, max_steps=4, save_steps=2, eval_steps=9)
    run = made(tmp_path / "straight")
    run.finish()
    assert json.loads((tmp_path / "straight" / "config.json").read_text())["ref_start"] == ref_start
    margins = [record["rewards/margins"] for record in read_jsonl(tmp_path / "straight" / "metrics.jsonl")[:-1]]
    assert (margins[0] == 0) == (ref_start == "policy")  # only the policy of the start is its own reference
    list(made(tmp_path / "killed").steps(2))
    again = made(tmp_path / "killed")
    again.finish()
    assert untimed(tmp_path / "killed") == untimed(tmp_path / "straight")
    for finished in (run, again):
        assert finished.reference is not None
        found = finished.reference.score(ROLLOUTS).logprobs
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
