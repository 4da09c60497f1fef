"""What the run loop asks of a sampler, whatever engine it runs on."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kit.config import Sampling
from kit.models.weights import Snapshot
from kit.samplers.receipt import Receipt
from kit.types import Group, Prompt


@runtime_checkable
class Sampler(Protocol):
    """Weights of the policy that generate. `version` counts the optimizer updates in them."""

    version: int

    def sync(self, policy: PreTrainedModel, version: int, *, step: int) -> Receipt:
        """Copy the policy's weights into the sampler and prove that they arrived; raises SyncError if not."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], group_size: int, *, seed: tuple[int, ...], sampling: Sampling
    ) -> list[Group]:
        """`group_size` completions of each prompt, drawn with randomness that depends on (seed, prompt) alone."""
        ...


@runtime_checkable
class TrainingSampler(Sampler, Protocol):
    """What a run trains with: its weights can be read, kept in a checkpoint, and taken up again."""

    weights: Snapshot
    tokenizer: PreTrainedTokenizerBase

    def restore(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Take up weights of earlier, as a checkpoint holds them."""
        ...

    def fresh(self, policy: PreTrainedModel) -> AbstractContextManager[Sampler]:
        """A sampler of the policy as it is now, for an evaluation inside the block."""
        ...

    def check_lengths(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Raises ValueError for a prompt that this sampler could not complete."""
        ...


SamplerFactory = Callable[[PreTrainedModel, PreTrainedTokenizerBase], TrainingSampler]  # from policy and tokenizer
