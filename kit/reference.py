"""The reference policy: a frozen copy with a sync schedule of its own, independent of the sampler's."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from kit.models.policy import copy_weights, frozen_copy, score
from kit.sync import Schedule, SyncState
from kit.types import Rollout, TokenScores


class Reference:
    """What DPO's margin and GRPO's KL term compare the policy with.

    Args:
        policy: the model to copy now.
        schedule: when to copy it again: `Never()` keeps the seed policy, `Every(k)` follows the policy every k steps.
            With `Every(1)` the reference equals the policy at every step, every DPO margin is zero and the loss the
            constant log 2: only its gradient still says something (see `pairs/weight`).
    """

    def __init__(self, policy: PreTrainedModel, schedule: Schedule) -> None:
        self.model = frozen_copy(policy)
        self.schedule = schedule
        self.version = 0

    def maybe_sync(self, policy: PreTrainedModel, step: int) -> bool:
        """Copy the policy if the schedule says so; asked once a step, before generating."""
        if not self.schedule.due(SyncState(step, self.version)):
            return False
        copy_weights(policy, self.model)
        self.version = step
        return True

    @torch.no_grad()  # not inference_mode, whose tensors may not enter a loss that has a gradient
    def score(self, rollouts: Sequence[Rollout], *, temperature: float = 1.0) -> TokenScores:
        return score(self.model, rollouts, temperature=temperature)
