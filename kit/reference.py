"""The reference policy: a frozen copy with a sync schedule of its own, independent of the sampler's."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from kit.models.policy import score
from kit.models.weights import copy_weights, mix_weights, snapshot, weights_of
from kit.sync import Schedule, SyncState
from kit.types import Rollout, TokenScores


class Reference:
    r"""What DPO's margin and GRPO's KL term compare the policy with.

    When its schedule says so the reference becomes

    .. math:: \theta_{ref} \leftarrow \alpha\,\theta + (1 - \alpha)\,\theta_{ref}

    Args:
        policy: the model to copy now.
        schedule: when to copy it again: `Never()` keeps the seed policy, `Every(k)` follows the policy every k steps,
            `WithSampler()` whenever the sampler was copied to. With `Every(1)` the reference equals the policy at every
            step, every DPO margin is zero and the loss the constant log 2: only its gradient still says something (see
            `pairs/weight`).
        mixup_alpha: in (0, 1]; 1 copies. `Every(1)` with 1 - d is an exponential moving average of decay d.

    Raises:
        ValueError: if mixup_alpha is out of range.
    """

    def __init__(self, policy: PreTrainedModel, schedule: Schedule, mixup_alpha: float = 1.0) -> None:
        if not 0 < mixup_alpha <= 1:
            raise ValueError(
                f"expected ref_mixup_alpha in (0, 1], came {mixup_alpha}: 1 copies; Never() keeps the seed"
            )
        self.weights = snapshot(policy, "reference")
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
