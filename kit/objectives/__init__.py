"""Objectives: which rollouts of a scored group train, as what, and under which loss.

An objective is a frozen value that is passed to the run. Adding one takes a file here, its tests, and a line in
`OBJECTIVES`.
"""

from collections.abc import Callable

from kit.objectives.dpo import DPO
from kit.objectives.group_dpo import GroupDPO
from kit.objectives.grpo import GRPO
from kit.objectives.objective import Objective, rewards_tensor

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "dpo": DPO,
    "group_dpo": GroupDPO,
    "grpo": GRPO,
}  # for papermill, whose parameters are strings

__all__ = ["DPO", "GRPO", "OBJECTIVES", "GroupDPO", "Objective", "rewards_tensor"]
