"""Faults of a sync, put where an engine could have them: each is caught by the first sync after it.

For vLLM the same is in tests/vllm/test_vllm_sampler.py.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kit.config import Lora
from kit.models.policy import load_policy
from kit.models.weights import copy_weights, has_adapter, weights_of
from kit.samplers import SyncError, TransformersSampler

Tensors = Mapping[str, Tensor]
Sync = Callable[[Tensors, Tensors], tuple[int, float]]
LORA = Lora(lora_r=4, lora_alpha=8.0)
KINDS = {
    "all weights": {},
    "adapters": {"lora": LORA},
    "adapters on int8": {"lora": LORA, "quantization": "int8"},
    "adapters on bfloat16": {"lora": LORA, "bf16": True},
}


def move(policy: PreTrainedModel, by: float) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, seed_folder: Path) -> tuple[PreTrainedModel, TransformersSampler]:
    """A policy and its sampler after one good sync."""
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] = load_policy(str(seed_folder), **KINDS[request.param])
    sampler = TransformersSampler(*loaded)
    move(loaded[0], 0.02)
    sampler.sync(loaded[0], 1, step=1)
    return loaded[0], sampler


def dropped(first: Tensors) -> Sync:
    return lambda source, target: (len(source), 0.0)


def of_the_start(first: Tensors) -> Sync:
    """The model that the run began with: for adapters, that of the frozen model alone."""
    return lambda source, target: copy_weights(first, target)


def one_tensor_kept(first: Tensors) -> Sync:
    def sync(source: Tensors, target: Tensors) -> tuple[int, float]:
        name = max(name for name in source if "norm" not in name)
        return copy_weights({**source, name: target[name].clone()}, target)

    return sync


def rounded(first: Tensors) -> Sync:
    return lambda source, target: copy_weights({n: t.bfloat16().to(t.dtype) for n, t in source.items()}, target)


def last_bit(first: Tensors) -> Sync:
    def sync(source: Tensors, target: Tensors) -> tuple[int, float]:
        done = copy_weights(source, target)
        number = target[max(target)].view(-1)[:1]
        number.copy_(torch.nextafter(number, number + 1))
        return done

    return sync


@pytest.mark.parametrize("fault", [dropped, of_the_start, one_tensor_kept, rounded, last_bit], ids=lambda f: f.__name__)
def test_the_first_sync_after_a_fault_fails(
    pair: tuple[PreTrainedModel, TransformersSampler], fault: Callable[[Tensors], Sync],
    monkeypatch: pytest.MonkeyPatch, seed_folder: Path,
) -> None:  # fmt: skip
    policy, sampler = pair
    lora = LORA if has_adapter(policy) else None
    first = weights_of(load_policy(str(seed_folder), lora=lora)[0])
    monkeypatch.setattr("kit.samplers.transformers.copy_weights", fault(first))
    move(policy, 1e-5)
    with pytest.raises(SyncError, match=r"before step 2 \(version 2\) did not reach .*these tensors differ") as raised:
        sampler.sync(policy, 2, step=2)
    assert raised.value.receipt.digest != raised.value.receipt.sampler_digest


def test_a_good_sync_of_the_smallest_update_passes(pair: tuple[PreTrainedModel, TransformersSampler]) -> None:
    policy, sampler = pair
    move(policy, 1e-7)
    receipt = sampler.sync(policy, 2, step=2)
    assert receipt.digest == receipt.sampler_digest and receipt.probe_parity <= 1e-4
