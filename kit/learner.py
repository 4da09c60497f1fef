"""The learner: one optimizer step on the examples of a batch, in micro-batches whose gradients add up."""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from kit.config import RunConfig
from kit.models.adapters import require_bitsandbytes
from kit.models.policy import recomputing, score
from kit.objectives import Objective
from kit.offpolicy import offpolicy_metrics
from kit.reference import Reference
from kit.sync import Drift
from kit.types import Example, Group, Rollout, TokenScores, Totals

EXTREMES = {"min": min, "max": max}  # how a metric with this ending combines over micro-batches; others are averaged
SHARES = ("policy_loss",)  # already a micro-batch's share of the step, like the loss
PER_TOKEN = ("entropy", "kl", "clip_ratio/")  # means over tokens; the others are means over examples


class NonFiniteError(RuntimeError):
    """The loss or its gradient is no longer a number; the weights are those of before this step."""


class Logprobs(NamedTuple):
    """What the policy and the reference said of all completion tokens of some rollouts, nats, (token,) each."""

    rollouts: Sequence[Rollout]
    policy: torch.Tensor
    reference: torch.Tensor | None


class Learner:
    """Policy, optimizer, objective and reference, and nothing about where examples come from."""

    def __init__(
        self, policy: PreTrainedModel, objective: Objective, reference: Reference | None, config: RunConfig
    ) -> None:
        self.policy, self.objective, self.reference, self.config = policy, objective, reference, config
        self.before: list[Logprobs] = []  # of the last update's micro-batches, before it
        self.optimizer = _optimizer(policy, config)

    def update(self, examples: Sequence[Example], totals: Totals, step: int) -> dict[str, float]:
        """One optimizer step; metrics are means over examples. Without an example the weights stay as they are.

        Raises:
            NonFiniteError: if the loss or the gradient is not finite; nothing was updated.
        """
        learning_rate = self.config.learning_rate * min(1.0, (step + 1) / max(self.config.warmup_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        sums: dict[str, float] = {}
        has_to_fit = self.objective.needs_fit and len(examples) > 0
        objective = self.objective.fitted(self._log_ratios(examples)) if has_to_fit else self.objective
        tokens = sum(len(rollout.completion_ids) for example in examples for rollout in example.rollouts)
        temperature, self.before = self.config.sampling.temperature, []
        self.optimizer.zero_grad(set_to_none=True)
        total_loss = 0.0
        for batch in self._micro_batches(examples):
            rollouts = _rollouts(batch)
            ref_scores = self.reference.score(rollouts, temperature=temperature) if self.reference else None
            with recomputing(self.policy) if self.config.gradient_checkpointing else nullcontext():
                scores = score(self.policy, rollouts, temperature=temperature)
            loss, metrics = objective.loss(batch, scores, ref_scores, totals)
            loss.backward()
            total_loss += loss.item()
            counted = scores.entropy.detach()[scores.completion_mask]
            ref_logprobs = ref_scores.logprobs[ref_scores.completion_mask] if ref_scores else None
            self.before.append(Logprobs(rollouts, scores.logprobs.detach()[scores.completion_mask], ref_logprobs))
            shares = (len(batch) / len(examples), len(counted) / tokens)
            for name, value in (metrics | {"entropy": counted.mean().item()}).items():
                sums[name] = _combined(name, sums.get(name), value, *shares)
        if examples and self.config.sampling.top_p == 1:  # otherwise the sampler's log-probs are of a cut distribution
            pairs = ((logprobs, _old_logprobs(rollouts).to(logprobs)) for rollouts, logprobs, _ in self.before)
            sums |= offpolicy_metrics(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm) if examples else 0.0
        found = {"loss": total_loss, "grad_norm": float(norm), "learning_rate": learning_rate}
        if not (math.isfinite(total_loss) and math.isfinite(found["grad_norm"])):
            raise NonFiniteError(
                f"expected a finite loss and gradient at step {step}, came loss {total_loss} and gradient norm "
                f"{found['grad_norm']}. The weights were not updated and the logs are complete up to here: lower "
                f"learning_rate (now {learning_rate:g}) or max_grad_norm (now {self.config.max_grad_norm:g})"
            )
        if examples:
            self.optimizer.step()
        return found | sums

    @torch.no_grad()
    def with_prox_logprobs(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with the policy's log-probs of now, for the passes that follow the first."""
        found: dict[int, Rollout] = {}
        for batch in self._micro_batches(examples):
            rollouts = _rollouts(batch)
            scores = score(self.policy, rollouts, temperature=self.config.sampling.temperature)
            for rollout, row, mask in zip(rollouts, scores.logprobs, scores.completion_mask, strict=True):
                found[id(rollout)] = replace(rollout, prox_logprobs=tuple(row[mask].tolist()))
        return [replace(e, rollouts=tuple(found[id(rollout)] for rollout in e.rollouts)) for e in examples]

    @torch.no_grad()
    def drift(self, groups: Sequence[Group]) -> Drift:
        """How far the policy is from the sampler that wrote these completions, all of them, whatever they train as."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        logprobs, old_logprobs = _both_logprobs(
            rollouts, score(self.policy, rollouts, temperature=self.config.sampling.temperature)
        )
        found = offpolicy_metrics(logprobs, old_logprobs)
        return Drift(found["offpolicy/kl"], found["offpolicy/m2"])

    @torch.no_grad()
    def _log_ratios(self, examples: Sequence[Example]) -> torch.Tensor:
        """log(pi / pi_old) of all tokens of a step."""
        found = []
        for batch in self._micro_batches(examples):
            rollouts = _rollouts(batch)
            scores = score(self.policy, rollouts, temperature=self.config.sampling.temperature)
            logprobs, old_logprobs = _both_logprobs(rollouts, scores)
            found.append(logprobs - old_logprobs)
        return torch.cat(found)

    def _micro_batches(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """Examples of similar length together, so that little padding is computed; their order changes no sum."""
        ordered = sorted(examples, key=lambda e: max(len(r.prompt_ids) + len(r.completion_ids) for r in e.rollouts))
        batch: list[Example] = []
        size = 0  # rollouts in the batch
        for example in ordered:
            if batch and size + len(example.rollouts) > self.config.micro_batch_size:
                yield batch
                batch, size = [], 0
            batch.append(example)
            size += len(example.rollouts)
        if batch:
            yield batch


def _optimizer(policy: PreTrainedModel, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW on what is in training; `adamw_bnb_8bit` keeps the moments of larger tensors in 8 bits (arXiv 2110.02861).

    Raises:
        ImportError: if that is asked for without bitsandbytes.
    """
    kind = torch.optim.AdamW
    if config.optim == "adamw_bnb_8bit":
        require_bitsandbytes("optim='adamw_bnb_8bit'")
        from bitsandbytes.optim import AdamW8bit

        kind = AdamW8bit
    return kind(
        [parameter for parameter in policy.parameters() if parameter.requires_grad], config.learning_rate,
        (config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon, weight_decay=config.weight_decay,
    )  # fmt: skip


def _rollouts(examples: Sequence[Example]) -> list[Rollout]:
    return [rollout for example in examples for rollout in example.rollouts]


def _both_logprobs(rollouts: Sequence[Rollout], scores: TokenScores) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all completion tokens, under the policy and under the sampler, (token,) each."""
    return scores.logprobs.detach()[scores.completion_mask], _old_logprobs(rollouts).to(scores.logprobs)


def _old_logprobs(rollouts: Sequence[Rollout]) -> torch.Tensor:
    return torch.tensor([logprob for rollout in rollouts for logprob in rollout.old_logprobs])


def _combined(name: str, before: float | None, value: float, of_examples: float, of_tokens: float) -> float:
    """A metric over the micro-batches so far and one more, which holds these shares of the step."""
    extreme = EXTREMES.get(name.rpartition("_")[2])
    if extreme:
        return value if before is None else extreme(before, value)
    share = 1.0 if name in SHARES else of_tokens if name.startswith(PER_TOKEN) else of_examples
    return (before or 0.0) + share * value
