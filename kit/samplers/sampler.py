"""What the run loop asks of a sampler, whatever engine it runs on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kit.config import Sampling
from kit.models.weights import Snapshot
from kit.samplers.receipt import Receipt
from kit.types import Group, Prompt


@dataclass(frozen=True)
class Request:
    """What is asked of a sampler at once: the arguments of `Sampler.generate`."""

    prompts: tuple[Prompt, ...]
    group_size: int
    seed: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True)
class Upcoming:
    """A batch that will be asked for, and whether the sampler is synced before that."""

    requests: tuple[Request, ...]
    is_after_sync: bool


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


@runtime_checkable
class SamplerAhead(TrainingSampler, Protocol):
    """One that can draw completions before they are asked for."""

    incidents: list[str]  # what went wrong and was mended; whoever reads these two empties them
    busy: float  # seconds that drawing took

    def expect(self, batches: Iterable[Upcoming]) -> None:
        """This batch and those that follow, as far as the sampler wants to look."""
        ...


SamplerFactory = Callable[[PreTrainedModel, PreTrainedTokenizerBase], TrainingSampler]  # from policy and tokenizer
