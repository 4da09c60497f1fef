"""What is shown of one prompt's completions at one step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Completion:
    """One completion, as it was recorded (`kit.columns.COLUMNS`). What is None was not known or not asked."""

    index: int  # within its group
    text: str
    tokens: int  # end-of-sequence token included
    reward: float | None  # total; None = no function could judge it
    rewards: Mapping[str, float | None]  # by reward function
    age: int  # updates between the weights that wrote it and the step; 0 = on-policy
    role: str | None  # what it trained as; None in an evaluation
    reason: str | None  # why it was unused
    finish_reason: str
    pieces: Sequence[str]  # the text of each token
    old_logprobs: Sequence[float] | None  # under the sampler, nats per token
    entropies: Sequence[float] | None  # of the sampler's distributions, nats per token
    logprobs: Sequence[float] | None  # under the policy before the update
    ref_logprobs: Sequence[float] | None  # under the reference


@dataclass(frozen=True)
class Group:
    """All completions of one prompt at one step."""

    number: int  # among all groups of the open directories
    run: str  # name of the run directory
    kind: str  # training or evaluation
    step: int
    task: str | None
    prompt_id: str
    prompt: str
    completions: Sequence[Completion]
