"""The vocabulary of the kit: what flows from a task through the sampler and the rewards to an objective.

Everything here is a frozen value without behaviour. Token ids are plain tuples of int: they are compared, logged and
hashed, and become tensors only where arithmetic happens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor

Messages = list[dict[str, str]]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a prompt-only dataset in TRL's format.

    `id` is unique and stable within the task: seeds derive from it. `content` is what TRL calls `prompt`: a string, or
    chat messages. `columns` holds the other columns (`solution`, `task`, ...), which reward functions receive.
    """

    id: str
    content: str | Messages
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion with its record.

    `old_logprobs` are nats per completion token under the distribution it was sampled from, end-of-sequence token
    included; `version` counts the optimizer updates in the weights that generated it.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    old_logprobs: tuple[float, ...]
    entropies: tuple[float, ...]  # nats per token, of the distribution each was drawn from; empty = not known
    text: str
    finish_reason: FinishReason
    version: int
    prox_logprobs: tuple[float, ...] = ()  # under the policy before the first gradient pass; empty = not needed


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one prompt and, once scored, their rewards (None = no function could judge it)."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    rewards: tuple[float | None, ...] = ()
    rewards_by_function: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Example:
    """The smallest unit of a loss: rollouts that must be trained on together.

    A DPO pair is (chosen, rejected); a GRPO example is one rollout and its advantage; a GroupDPO example is all of a
    group that was judged. `advantages` and `is_chosen` have one entry a rollout, or none where they mean nothing.
    """

    rollouts: tuple[Rollout, ...]
    advantages: tuple[float, ...] = ()
    is_chosen: tuple[bool, ...] = ()


@dataclass(frozen=True)
class TokenScores:
    """What a model says of rollouts, in nats per completion token; right-padded, one row a rollout."""

    logprobs: Float[Tensor, "seq tok"]
    entropy: Float[Tensor, "seq tok"]
    completion_mask: Bool[Tensor, "seq tok"]  # True = a completion token


@dataclass(frozen=True, slots=True)
class Totals:
    """Sizes of a whole optimizer step, which the losses of its micro-batches are divided by, so that they add up."""

    prompts: int
    rollouts: int
    tokens: int  # completion tokens of all rollouts
    examples: int  # those with a training signal
    chosen_tokens: int = 0  # completion tokens of the examples' chosen rollouts
