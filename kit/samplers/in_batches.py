"""A sampler that draws only so many completions at a time: what bounds the memory of keys and values."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from kit.config import Sampling
from kit.samplers.receipt import Receipt
from kit.samplers.sampler import Sampler
from kit.types import Group, Prompt


class InBatches:
    """Hands prompts to a sampler in batches of at most `size` completions; a group is never split.

    Randomness depends on (seed, prompt) alone, so the completions are those of one large batch, up to how sums round.

    Raises:
        ValueError: if size is below 1.
    """

    def __init__(self, sampler: Sampler, size: int) -> None:
        if size < 1:
            raise ValueError(f"expected a batch of at least 1 completion, came {size}")
        self.sampler, self.size, self.version = sampler, size, sampler.version

    def sync(self, policy: PreTrainedModel, version: int, *, step: int) -> Receipt:
        """The sampler's own."""
        receipt = self.sampler.sync(policy, version, step=step)
        self.version = self.sampler.version
        return receipt

    def generate(
        self, prompts: Sequence[Prompt], group_size: int, *, seed: tuple[int, ...], sampling: Sampling
    ) -> list[Group]:
        """See `Sampler.generate`."""
        return [
            group
            for some in prompt_batches(prompts, group_size, self.size)
            for group in self.sampler.generate(some, group_size, seed=seed, sampling=sampling)
        ]


def prompt_batches(prompts: Sequence[Prompt], group_size: int, size: int) -> list[Sequence[Prompt]]:
    """The prompts, in batches of at most `size` completions; a group is never split."""
    count = max(1, size // group_size)
    return [prompts[first : first + count] for first in range(0, len(prompts), count)]
