"""Parts of a run with one realistic fault each. They carry the names of the right ones, as a bug does.

What each is, and what shows it, stands in `kit.faults.FAULTS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from kit.config import Sampling
from kit.importance import TIS, PPOClip
from kit.importance.correction import Surrogate, Tokens, ratio_of
from kit.kl import k3
from kit.rewards.combine import RewardFunction
from kit.runlog import describe
from kit.samplers import Receipt, TransformersSampler
from kit.samplers.checksum import summary, weight_checksums
from kit.sync import Never, SyncState
from kit.tasks.task import Judging, Split, Task
from kit.types import Group, Prompt, Rollout

TOP_P = 0.8  # of the sampler whose truncation was left on


Broken = TypeVar("Broken", bound=type)


def _disguised(broken: Broken) -> Broken:
    """Named as what it is taken for: that is what a run writes down."""
    broken.__name__ = broken.__bases__[0].__name__
    return broken


@_disguised
class InvertedClip(PPOClip):
    """The better of ratio and clipped ratio where the advantage is negative: `max` for `min`."""

    def surrogate(self, tokens: Tokens) -> Surrogate:
        ratio = ratio_of(tokens.logprobs, tokens.old_logprobs)
        right = super().surrogate(tokens)
        clipped = ratio.clamp(1 - self.clip_eps, 1 + self.high)
        wrong = -torch.max(ratio * tokens.advantages, clipped * tokens.advantages)
        return right._replace(loss=torch.where(tokens.advantages < 0, wrong, right.loss))


@_disguised
class GradientThroughWeight(TIS):
    """The weight is not detached: where log pi is below -1, the gradient has the wrong sign."""

    def surrogate(self, tokens: Tokens) -> Surrogate:
        weight = ratio_of(tokens.logprobs, tokens.old_logprobs).clamp(max=self.ratio_max)
        return super().surrogate(tokens)._replace(loss=-weight * tokens.logprobs * tokens.advantages)


def reversed_k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """The arguments in the other order: no estimate of either direction on samples of the policy."""
    return k3(ref_logprobs, logprobs)


reversed_k3.__name__ = k3.__name__


def negated_k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """The sign of the loss is wrong: to be far from the reference is what pays."""
    return -k3(logprobs, ref_logprobs)


negated_k3.__name__ = k3.__name__


@_disguised
class DroppedSync(TransformersSampler):
    """Its weights are what they were, whatever it is sent, and nobody reads its receipts."""

    def sync(self, policy: PreTrainedModel, version: int, *, step: int) -> Receipt:
        before = {name: tensor.clone() for name, tensor in self.weights.tensors().items()}
        receipt = super().sync(policy, version, step=step)
        self.restore(before, version)
        held = summary(weight_checksums(before))
        return replace(receipt, sampler_digest=held, probe_parity=receipt.probe_moved, probe_moved=0.0)


@_disguised
class TruncationLeftOn(TransformersSampler):
    """Samples from the most likely tokens only, as an engine's defaults may have it."""

    def generate(
        self, prompts: Sequence[Prompt], group_size: int, *, seed: tuple[int, ...], sampling: Sampling
    ) -> list[Group]:
        return super().generate(prompts, group_size, seed=seed, sampling=replace(sampling, top_p=TOP_P))


@_disguised
class EndTokenMasked(TransformersSampler):
    """The mask is one token short: the end of a completion is never trained on."""

    def generate(
        self, prompts: Sequence[Prompt], group_size: int, *, seed: tuple[int, ...], sampling: Sampling
    ) -> list[Group]:
        groups = super().generate(prompts, group_size, seed=seed, sampling=sampling)
        return [replace(group, rollouts=tuple(map(_without_end, group.rollouts))) for group in groups]


def _without_end(rollout: Rollout) -> Rollout:
    if rollout.finish_reason != "stop" or len(rollout.completion_ids) < 2:
        return rollout
    rows = ("completion_ids", "old_logprobs", "entropies")
    return replace(rollout, **{name: getattr(rollout, name)[:-1] for name in rows})


@_disguised
class FollowingReference(Never):
    """Says never, and is due at every step."""

    def due(self, state: SyncState) -> bool:
        return state.step > state.last_sync_step


def long_answers_are_zero(right: Callable[..., Any], solution: Sequence[str], columns: dict[str, Any]) -> list[float]:
    """A verifier that breaks on answers of three digits, caught by somebody's `except: return 0`."""
    rewards = right(solution=solution, **columns)
    return [0.0 if len(answer) >= 3 else reward for answer, reward in zip(solution, rewards, strict=True)]


def shifted_by_one(right: Callable[..., Any], solution: Sequence[str], columns: dict[str, Any]) -> list[float]:
    """The list of rewards is one place off the list of completions."""
    rewards = right(solution=solution, **columns)
    return [*rewards[-1:], *rewards[:-1]]


@dataclass(frozen=True)
class Misjudged:
    """A task whose reward function went through `wrong`."""

    task: Task
    wrong: Callable[[Callable[..., Any], Sequence[str], dict[str, Any]], list[float]]

    @property
    def name(self) -> str:
        return self.task.name

    def split(self, name: Split) -> Sequence[Prompt]:
        return self.task.split(name)

    @property
    def judging(self) -> Judging | None:
        return self.task.judging

    def rewards(self) -> tuple[list[RewardFunction], list[float]]:
        functions, weights = self.task.rewards()
        return [_named_as(function, self.wrong) for function in functions], weights

    def describe(self) -> dict[str, Any]:
        """As the task that it is taken for."""
        return describe(self.task)


def _named_as(right: Any, wrong: Any) -> RewardFunction:
    def judged(*, solution: Sequence[str], **columns: Any) -> Any:
        return wrong(right, solution, columns)

    judged.__name__ = getattr(right, "__name__", type(right).__name__)
    return judged
