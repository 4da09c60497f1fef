"""Snapshots of the policy's weights: what is in them, that they stay, and that the policy comes back after them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from kit.config import Lora
from kit.models.policy import load_policy, score
from kit.models.weights import (
    AdapterSnapshot,
    LiveWeights,
    ModelSnapshot,
    Snapshot,
    copy_weights,
    digest,
    has_adapter,
    mix_weights,
    snapshot,
    weights_of,
)
from kit.types import Rollout

WAYS = {"full": None, "lora": Lora(lora_r=2, lora_alpha=4.0, lora_target_modules=("q_proj", "down_proj"))}
ROLLOUTS = [Rollout((3, 21, 4), (20, 21, 1), (), (), "", "stop", 0)]


@pytest.fixture(params=WAYS)
def policy(request: pytest.FixtureRequest, tiny_folder: Path) -> PreTrainedModel:
    model, _ = load_policy(str(tiny_folder), lora=WAYS[request.param])
    move(model, 1)
    return model


def move(model: PreTrainedModel, seed: int) -> None:
    """Another policy: also an adapter's B is then no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in {t.data_ptr(): t for t in weights_of(model).values()}.values():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)


@torch.no_grad()
def logprobs(model: PreTrainedModel) -> torch.Tensor:
    return score(model, ROLLOUTS).logprobs


@torch.no_grad()
def logprobs_in(weights: Snapshot) -> torch.Tensor:
    with weights.active() as model:
        return score(model, ROLLOUTS).logprobs


def trainable(model: PreTrainedModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_kind_follows_what_is_in_training(policy: PreTrainedModel) -> None:
    assert isinstance(snapshot(policy, "behavior"), AdapterSnapshot if has_adapter(policy) else ModelSnapshot)
    assert isinstance(LiveWeights(policy), Snapshot) and isinstance(snapshot(policy, "reference"), Snapshot)


def test_weights_are_all_of_the_model_or_the_two_factors_of_each_adapted_layer(tiny_folder: Path) -> None:
    full, _ = load_policy(str(tiny_folder))
    assert set(weights_of(full)) == set(full.state_dict())
    adapted, _ = load_policy(str(tiny_folder), lora=WAYS["lora"])
    layers = [f"model.layers.{n}.{part}" for n in range(2) for part in ("self_attn.q_proj", "mlp.down_proj")]
    shapes = {  # A (r, inputs), B (outputs, r); the model is 32 wide, its MLP 48
        f"{layer}.lora_{factor}.weight": (2, 48 if "down" in layer else 32) if factor == "A" else (32, 2)
        for layer in layers
        for factor in "AB"
    }
    assert {name: tuple(tensor.shape) for name, tensor in weights_of(adapted).items()} == shapes


def test_a_snapshot_has_the_same_names_and_values_and_no_common_memory(policy: PreTrainedModel) -> None:
    found, source = snapshot(policy, "behavior").tensors(), weights_of(policy)
    assert digest(found) == digest(source) and set(found) == set(source)
    assert not {t.data_ptr() for t in found.values()} & {t.data_ptr() for t in source.values()}


def test_a_snapshot_stays_as_it_was_while_the_policy_moves_and_computes_as_the_policy_did(
    policy: PreTrainedModel,
) -> None:
    taken, expected, was = snapshot(policy, "behavior"), logprobs(policy), digest(weights_of(policy))
    move(policy, 2)
    assert digest(taken.tensors()) == was != digest(weights_of(policy))
    assert torch.equal(logprobs_in(taken), expected)
    assert not torch.equal(logprobs(policy), expected)


def test_two_snapshots_are_apart(policy: PreTrainedModel) -> None:
    first = snapshot(policy, "behavior")
    move(policy, 2)
    second = snapshot(policy, "reference")
    was = digest(first.tensors())
    assert digest(second.tensors()) != was
    copy_weights(weights_of(policy), second.tensors())
    assert digest(first.tensors()) == was
    assert not torch.equal(logprobs_in(first), logprobs_in(second))


@pytest.mark.parametrize("kind", ["copy", "live"])
def test_what_is_written_into_the_tensors_counts_at_once(policy: PreTrainedModel, kind: str) -> None:
    weights = LiveWeights(policy) if kind == "live" else snapshot(policy, "behavior")
    other, before = {name: 1.5 * tensor for name, tensor in weights.tensors().items()}, logprobs(policy)
    copy_weights(other, weights.tensors())
    after = logprobs_in(weights)
    assert not torch.equal(after, before)
    assert torch.equal(logprobs(policy), after if kind == "live" else before)


def test_live_weights_are_the_policys_own(policy: PreTrainedModel) -> None:
    live = LiveWeights(policy)
    move(policy, 2)
    assert digest(live.tensors()) == digest(weights_of(policy)) and torch.equal(logprobs_in(live), logprobs(policy))


def test_the_policy_comes_back_after_the_block_and_after_an_error_in_it(policy: PreTrainedModel) -> None:
    taken = snapshot(policy, "behavior")
    move(policy, 2)
    expected, in_training = logprobs(policy), trainable(policy)
    assert in_training and not any("behavior" in name for name in in_training)
    logprobs_in(taken)
    assert torch.equal(logprobs(policy), expected) and trainable(policy) == in_training
    with pytest.raises(RuntimeError, match="in the middle"), taken.active():
        raise RuntimeError("in the middle")
    assert torch.equal(logprobs(policy), expected) and trainable(policy) == in_training


def test_no_gradient_reaches_a_snapshot_and_the_policys_is_what_it_is_without_one(policy: PreTrainedModel) -> None:
    score(policy, ROLLOUTS).logprobs.sum().backward()
    expected = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    assert set(expected) == trainable(policy)
    policy.zero_grad(set_to_none=True)
    taken = snapshot(policy, "reference")
    ref = logprobs_in(taken)
    with_graph = score(policy, ROLLOUTS).logprobs
    logprobs_in(taken)  # also between the policy's forward and backward passes
    (with_graph - ref).sum().backward()
    found = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in found)
    with taken.active() as model:
        own = [p for n, p in model.named_parameters() if "reference" in n or not has_adapter(policy)]
    assert own and all(parameter.grad is None for parameter in own)


def test_adapters_beside_the_policy_hold_no_copy_of_the_model(tiny_folder: Path) -> None:
    policy, _ = load_policy(str(tiny_folder), lora=WAYS["lora"])
    before = sum(p.numel() for p in policy.parameters())
    size = sum(t.numel() for t in weights_of(policy).values())
    snapshot(policy, "behavior"), snapshot(policy, "reference")
    assert sum(p.numel() for p in policy.parameters()) == before + 2 * size
    assert {name for layer in policy.modules() if isinstance(layer, LoraLayer) for name in layer.lora_A} == {
        "policy", "behavior", "reference",
    }  # fmt: skip


def test_a_second_snapshot_of_a_name_is_another_one(policy: PreTrainedModel) -> None:
    first = snapshot(policy, "behavior")
    was = digest(first.tensors())
    for seed in (2, 3):
        move(policy, seed)
        assert digest(snapshot(policy, "behavior").tensors()) == digest(weights_of(policy)) != was
    assert digest(first.tensors()) == was


def test_mixing_moves_a_snapshot_part_of_the_way(policy: PreTrainedModel) -> None:
    taken = snapshot(policy, "reference")
    with torch.no_grad():
        for tensor in taken.tensors().values():
            tensor.fill_(8.0)
        for tensor in weights_of(policy).values():
            tensor.fill_(16.0)
    mix_weights(weights_of(policy), taken.tensors(), 0.25)  # 8 + (16 - 8) / 4; tied tensors move once
    assert all(bool((tensor == 10.0).all()) for tensor in taken.tensors().values())
    assert all(bool((tensor == 16.0).all()) for tensor in weights_of(policy).values())


def test_copying_says_how_far_an_adapter_moved(tiny_folder: Path) -> None:
    policy, _ = load_policy(str(tiny_folder), lora=WAYS["lora"])
    taken = snapshot(policy, "behavior")
    with torch.no_grad():
        weights_of(policy)["model.layers.1.mlp.down_proj.lora_B.weight"].add_(0.5)  # 32 x 2 numbers
    tensors, delta_norm = copy_weights(weights_of(policy), taken.tensors())
    assert tensors == 8 and delta_norm == pytest.approx(0.5 * 64**0.5)


@pytest.mark.parametrize("read", [weights_of, lambda policy: snapshot(policy, "behavior").tensors()])
def test_reading_weights_asks_no_hub(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[PreTrainedModel], object]
) -> None:
    """PEFT, left to itself, looks there for the base model's configuration whenever an adapter's weights are read."""
    from peft.utils import save_and_load

    def asked(*arguments: object, **options: object) -> bool:
        raise AssertionError(f"asked the hub for {arguments}")

    policy, _ = load_policy(str(tiny_folder), lora=WAYS["lora"])
    policy.peft_config["policy"].base_model_name_or_path = "some/model"
    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", asked)
    read(policy)
