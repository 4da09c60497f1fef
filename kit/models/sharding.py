"""A model whose weights are sharded over ranks: PyTorch's FSDP2, `torch.distributed.fsdp.fully_shard`.

Each rank keeps a part of every tensor, of its gradient and of the optimizer's moments. A layer's weights are put
together when it computes, and dropped again. Zhao et al. 2023, https://arxiv.org/abs/2304.11277.
"""

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from kit.models.policy import score_whole
from kit.types import Rollout


def shard_model(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard a model in place; from then on all ranks of the mesh must call `kit.models.policy.score` together.

    Gradients are summed over ranks, so that losses which are each divided by the size of the whole step add up.

    Raises:
        ValueError: for a decoder without a list of layers, which would have to be put together all at once.
    """
    layers: Any = getattr(model.get_decoder(), "layers", None) or getattr(model.get_decoder(), "h", None)
    if not layers:
        raise ValueError(
            f"expected a model whose decoder has a list of layers (`layers`, or `h`), came {type(model).__name__}: "
            "train it with one trainer, without sharding"
        )
    # Always dropped after a forward pass: what is kept would be the weights of before an update, or before a sync.
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no sum that scales
    sharded: Any = model
    sharded.score_whole = MethodType(_score_whole, model)
    register_fsdp_forward_method(model, "score_whole")
    # The first pass decides which weights get gradients: it must be one of the adapter in training.
    with torch.no_grad():
        sharded.score_whole([Rollout((0,), (0,), (0.0,), (), "", "stop", 0)], 1.0)


def _score_whole(
    model: PreTrainedModel, rollouts: Sequence[Rollout], temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The fields of `TokenScores`, in which FSDP2 would not find the tensors."""
    scores = score_whole(model, rollouts, temperature)
    return scores.logprobs, scores.entropy, scores.completion_mask
