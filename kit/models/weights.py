"""Sets of the policy's weights: those in training, and copies that stay as they are while the policy moves on.

With all weights in training a copy is a second model. With adapters it is a further named adapter on the one frozen
model, so that policy, reference and sampler together hold the large matrices once.
"""

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

POLICY = "policy"  # the adapter in training


@runtime_checkable
class Snapshot(Protocol):
    """One set of the policy's weights, under the names that `weights_of` gives them."""

    def tensors(self) -> dict[str, Tensor]:
        """The weights themselves: what is written into them counts at once."""
        ...

    def active(self) -> AbstractContextManager[PreTrainedModel]:
        """The model, computing with these weights inside the block, and with the policy's again after it."""
        ...


class ModelSnapshot:
    """A second model that no gradient reaches."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self.model = frozen_copy(policy)

    def tensors(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def active(self) -> AbstractContextManager[PreTrainedModel]:
        return nullcontext(self.model)


class AdapterSnapshot:
    """An adapter beside the policy's own, on the same frozen model."""

    def __init__(self, policy: PreTrainedModel, name: str) -> None:
        taken = sum(other.partition("_")[0] == name for other in policy.peft_config)
        self.model, self.name = policy, f"{name}_{taken + 1}" if taken else name
        add_named_adapter(policy, policy.peft_config[POLICY], self.name)
        policy.set_adapter(POLICY)
        copy_weights(weights_of(policy), self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        return adapter_tensors(self.model, self.name)

    @contextmanager
    def active(self) -> Iterator[PreTrainedModel]:
        self.model.set_adapter(self.name)
        try:
            yield self.model
        finally:
            self.model.set_adapter(POLICY)


class LiveWeights:
    """The policy's own weights, which change with every update."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self.model = policy

    def tensors(self) -> dict[str, Tensor]:
        return weights_of(self.model)

    def active(self) -> AbstractContextManager[PreTrainedModel]:
        return nullcontext(self.model)


def snapshot(policy: PreTrainedModel, name: str) -> Snapshot:
    """A copy of the policy's weights as they are now.

    With adapters in training it is one called `name`, or `name_2` and so on if there is one of that name.
    """
    return AdapterSnapshot(policy, name) if has_adapter(policy) else ModelSnapshot(policy)


def has_adapter(model: nn.Module) -> bool:
    """Whether adapters are in training, rather than all weights."""
    return POLICY in getattr(model, "peft_config", {})


def weights_of(policy: nn.Module) -> dict[str, Tensor]:
    """The weights in training, by name: all of the model's, or those of its adapter."""
    return adapter_tensors(policy, POLICY) if has_adapter(policy) else policy.state_dict()


def adapter_tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """One adapter's weights, under names without the adapter's."""
    from peft import get_peft_model_state_dict  # half a second to import

    # The embeddings are never adapted; told nothing, peft looks on the hub for whether they were.
    return get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)


def add_named_adapter(model: PreTrainedModel, config: Any, name: str) -> None:
    """Put one more adapter (`config` is a LoraConfig) on the model and let it compute with it; float32 in any model.

    New modules evaluate, those that were there stay in their mode.
    """
    training = {id(module) for module in model.modules() if module.training}
    with warnings.catch_warnings():  # peft warns that there are then several, which is what is wanted
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        model.add_adapter(config, name)
    for key, parameter in model.named_parameters():
        if f".{name}." in key:
            parameter.data = parameter.data.float()
    for module in model.modules():
        module.training = id(module) in training


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A second model with the same weights that no gradient reaches."""
    return deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def copy_weights(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> tuple[int, float]:
    """Copy every tensor by name; returns (how many tensors, 2-norm of the change).

    Where the target is sharded over ranks each copies its own shard, and the norm is that of its own change.

    Raises:
        ValueError: if the names or shapes of the two differ.
    """
    if {k: v.shape for k, v in source.items()} != {k: v.shape for k, v in target.items()}:
        odd = sorted(set(source) ^ set(target)) or sorted(k for k in source if source[k].shape != target[k].shape)
        raise ValueError(
            f"weights can only be copied between models of one architecture; these tensors differ: {odd[:5]}"
        )
    pairs = {
        name: (_own(distributed_as(held, source[name])).to(held.device), _own(held)) for name, held in target.items()
    }
    changes = (pairs[name][1].double() - pairs[name][0].double() for name in _distinct(target))
    squared = sum(change.square().sum().item() for change in changes)
    for new, held in pairs.values():
        held.copy_(new)
    return len(source), squared**0.5


@torch.no_grad()
def mix_weights(source: Mapping[str, Tensor], target: Mapping[str, Tensor], alpha: float) -> None:
    """Move every floating-point tensor of `target` the share `alpha` of the way to `source`."""
    for name in _distinct(target):
        if target[name].is_floating_point():
            held = _own(target[name])
            held.lerp_(_own(distributed_as(target[name], source[name])).to(held), alpha)


def distributed_as(other: Tensor, tensor: Tensor) -> Tensor:
    """A tensor that every rank holds all of, sharded as another one is; itself if that one is not sharded."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from its shards, which all ranks must ask for at once; one that is not sharded as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _own(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes, the first 16 hex digits."""
    total = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]


def _distinct(weights: Mapping[str, Tensor]) -> list[str]:
    """One name for each tensor: tied ones have two."""
    return list({_own(tensor).data_ptr(): name for name, tensor in weights.items()}.values())
