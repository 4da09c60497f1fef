"""What is known before a run starts. Whatever is None or empty is not looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from kit.config import RunConfig
from kit.objectives import Objective
from kit.rewards.combine import RewardFunction
from kit.sync import Schedule
from kit.types import Prompt

if TYPE_CHECKING:  # whoever only reads a run need not wait for it
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Parts:
    """The parts of a run; `model` is the policy itself, once it is loaded."""

    tokenizer: "PreTrainedTokenizerBase | None" = None
    model_config: "PreTrainedConfig | None" = None
    generation_config: "GenerationConfig | None" = None
    model: nn.Module | None = None
    prompts: Sequence[Prompt] = ()
    functions: Sequence[RewardFunction] = ()
    config: RunConfig | None = None
    objective: Objective | None = None
    sync: Schedule | None = None

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The ids at which the kit's samplers stop: those of the generation settings, else the tokenizer's."""
        settings = self.generation_config
        ends = None if settings is None else settings.eos_token_id
        if ends is None and self.tokenizer is not None:
            ends = self.tokenizer.eos_token_id
        return () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)  # pyright: ignore[reportReturnType]
