"""What a run asks of whatever trains its policy: in this process, or on ranks elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from transformers import PreTrainedModel

from kit.checkpoint import Tensors
from kit.config import RunConfig
from kit.learner import Learner, Logprobs
from kit.objectives import Objective
from kit.reference import Reference
from kit.sync import Drift
from kit.types import Example, Group, Totals


@runtime_checkable
class Trainer(Protocol):
    """A policy in training, with its optimizer and reference.

    Attributes:
        before: what the models said of the last update's rollouts before it.
        reference: where it is in this process.
        ref_version: updates in the reference's weights; None without a reference.
    """

    before: list[Logprobs]
    reference: Reference | None

    @property
    def ref_version(self) -> int | None: ...

    def change(self, config: RunConfig, objective: Objective) -> None:
        """Go on with these."""
        ...

    def follow(self, step: int, sampler_version: int) -> int | None:
        """Sync the reference if its schedule says so; asked once a step, before the update. Returns `ref_version`."""
        ...

    def update(self, examples: Sequence[Example], totals: Totals, step: int) -> dict[str, float]:
        """One optimizer step, its metrics; raises NonFiniteError where it cannot be made."""
        ...

    def with_prox_logprobs(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with the policy's log-probs of now."""
        ...

    def drift(self, groups: Sequence[Group]) -> Drift:
        """Of the policy from the sampler that wrote these completions."""
        ...

    def pull(self) -> None:
        """Bring the policy that the trainer was made from up to date."""
        ...

    def parts(self) -> Mapping[str, Tensors]:
        """Weights and moments, as a checkpoint holds them; brings the policy up to date, as `pull` does."""
        ...

    def load(self, parts: Mapping[str, Tensors], ref_version: int) -> None:
        """Take up what `parts` gave, the policy here too."""
        ...

    def peak_memory(self) -> int:
        """Bytes; see `kit.costs.peak_memory`."""
        ...


MakeReference = Callable[[PreTrainedModel], Reference]  # of the policy as it is
TrainerFactory = Callable[[PreTrainedModel, Objective, MakeReference | None, RunConfig], Trainer]


def in_process(
    policy: PreTrainedModel, objective: Objective, make_reference: MakeReference | None, config: RunConfig
) -> Learner:
    """Train the policy here."""
    return Learner(policy, objective, make_reference(policy) if make_reference else None, config)
