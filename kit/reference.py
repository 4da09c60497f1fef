"""The reference policy: a frozen copy with a sync schedule of its own, independent of the sampler's."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from transformers import PreTrainedModel

from kit.models.policy import score
from kit.models.weights import copy_weights, has_adapter, mix_weights, snapshot, weights_of
from kit.sync import Schedule, SyncState
from kit.types import Rollout, TokenScores

ReferenceStart = Literal["policy", "base"]


class Reference:
    r"""What DPO's margin and GRPO's KL term compare the policy with.

    When its schedule says so the reference becomes

    .. math:: \theta_{ref} \leftarrow \alpha\,\theta + (1 - \alpha)\,\theta_{ref}

    With adapters the weights are A and B, each for itself, and the sum in between is of those, not of their products.

    Args:
        policy: the model to copy now.
        schedule: when to copy it again: `Never()` keeps what it starts with, `Every(k)` follows the policy every k
            steps, `WithSampler()` whenever the sampler was copied to. With `Every(1)` the reference equals the policy
            at every step, every DPO margin is zero and the loss the constant log 2: only its gradient still says
            something (see `pairs/weight`).
        mixup_alpha: in (0, 1]; 1 copies. `Every(1)` with 1 - d is an exponential moving average of decay d.
        start: what to hold until then: "policy" copies the policy as it is now, "base" is the model without the
            adapter, which is another thing where the run goes on from a trained one.

    Raises:
        ValueError: if mixup_alpha is out of range, start is neither, or it is "base" and there is no adapter.
    """

    def __init__(
        self, policy: PreTrainedModel, schedule: Schedule, mixup_alpha: float = 1.0, *, start: ReferenceStart = "policy"
    ) -> None:
        if not 0 < mixup_alpha <= 1:
            raise ValueError(
                f"expected ref_mixup_alpha in (0, 1], came {mixup_alpha}: 1 copies; Never() keeps the seed"
            )
        if start not in get_args(ReferenceStart):
            raise ValueError(f"expected ref_start to be one of {get_args(ReferenceStart)}, came {start!r}")
        if start == "base" and not has_adapter(policy):
            raise ValueError(
                'expected ref_start="policy", came "base": with all weights in training there is no model apart from '
                'the policy. Leave it at "policy", the model that the run starts from'
            )
        self.weights = snapshot(policy, "reference")
        if start == "base":  # W + (alpha / r) B A with B = 0
            for name, tensor in self.weights.tensors().items():
                if "lora_B" in name:
                    tensor.detach().zero_()
        self.schedule = schedule
        self.mixup_alpha = mixup_alpha
        self.version = 0

    def maybe_sync(self, policy: PreTrainedModel, step: int, sampler_version: int) -> bool:
        """Follow the policy if the schedule says so; asked once a step, after the sampler and before the update."""
        if not self.schedule.due(SyncState(step, self.version, sampler_step=sampler_version)):
            return False
        if self.mixup_alpha == 1:
            copy_weights(weights_of(policy), self.weights.tensors())
        else:
            mix_weights(weights_of(policy), self.weights.tensors(), self.mixup_alpha)
        self.version = step
        return True

    @torch.no_grad()  # not inference_mode, whose tensors may not enter a loss that has a gradient
    def score(self, rollouts: Sequence[Rollout], *, temperature: float = 1.0) -> TokenScores:
        with self.weights.active() as model:
            return score(model, rollouts, temperature=temperature)
