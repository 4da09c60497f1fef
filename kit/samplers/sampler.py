"""What the run loop asks of a sampler, whatever engine it runs on."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from transformers import PreTrainedModel

from kit.config import Sampling
from kit.samplers.receipt import Receipt
from kit.types import Group, Prompt


@runtime_checkable
class Sampler(Protocol):
    """A policy copy that generates. `version` counts the optimizer updates in its weights."""

    version: int

    def sync(self, policy: PreTrainedModel, version: int, *, step: int) -> Receipt:
        """Copy the policy's weights into the sampler and prove that they arrived; raises SyncError if not."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], group_size: int, *, seed: tuple[int, ...], sampling: Sampling
    ) -> list[Group]:
        """`group_size` completions of each prompt, drawn with randomness that depends on (seed, prompt) alone."""
        ...
