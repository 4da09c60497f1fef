"""The learner: one optimizer step on the examples of a batch, in micro-batches whose gradients add up."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from kit.checkpoint import Tensors, load_optimizer_tensors, optimizer_tensors
from kit.config import RunConfig
from kit.costs import peak_memory
from kit.models.adapters import require_bitsandbytes
from kit.models.policy import recomputing, score
from kit.models.weights import copy_weights, weights_of, whole
from kit.objectives import Objective
from kit.offpolicy import offpolicy_metrics
from kit.reference import Reference
from kit.sync import Drift
from kit.team import Alone, Team
from kit.types import Example, Group, Rollout, Totals

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


class Pass(NamedTuple):
    """What the forward and backward pass of a micro-batch found."""

    loss: float  # its share of the step's
    metrics: dict[str, float]
    policy: torch.Tensor  # as `Logprobs`
    reference: torch.Tensor | None


class Learner:
    """Policy, optimizer, objective and reference, and nothing about where examples come from; see `kit.trainer`.

    Args:
        team: the ranks that share a step's micro-batches; this one and no other by default.
    """

    def __init__(
        self, policy: PreTrainedModel, objective: Objective, reference: Reference | None, config: RunConfig, *,
        team: Team | None = None,
    ) -> None:  # fmt: skip
        self.policy, self.objective, self.reference, self.config = policy, objective, reference, config
        self.team = Alone() if team is None else team
        self.before: list[Logprobs] = []  # of the last update's micro-batches, before it
        self.optimizer = _optimizer(policy, config)

    @property
    def ref_version(self) -> int | None:
        return self.reference.version if self.reference else None

    def change(self, config: RunConfig, objective: Objective) -> None:
        self.config, self.objective = config, objective

    def follow(self, step: int, sampler_version: int) -> int | None:
        if self.reference:
            self.reference.maybe_sync(self.policy, step, sampler_version)
        return self.ref_version

    def pull(self) -> None:
        """Nothing: it trains the policy itself."""

    def peak_memory(self) -> int:
        return peak_memory(self.policy.device)

    def parts(self) -> dict[str, Tensors]:
        """Weights and moments, as a checkpoint holds them; the tensors themselves."""
        parts: dict[str, Tensors] = {"policy": weights_of(self.policy), "optimizer": optimizer_tensors(self.optimizer)}
        return parts | ({"reference": self.reference.weights.tensors()} if self.reference else {})

    def load(self, parts: Mapping[str, Tensors], ref_version: int) -> None:
        copy_weights(parts["policy"], weights_of(self.policy))
        load_optimizer_tensors(self.optimizer, parts["optimizer"])
        if self.reference:
            copy_weights(parts["reference"], self.reference.weights.tensors())
            self.reference.version = ref_version

    def update(self, examples: Sequence[Example], totals: Totals, step: int) -> dict[str, float]:
        """One optimizer step; metrics are means over examples. Without an example the weights stay as they are.

        Raises:
            NonFiniteError: if the loss or the gradient is not finite; nothing was updated.
        """
        learning_rate = self.config.learning_rate * min(1.0, (step + 1) / max(self.config.warmup_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.before = []
        self.optimizer.zero_grad(set_to_none=True)
        has_to_fit = self.objective.needs_fit and len(examples) > 0
        objective = self.objective.fitted(self._log_ratios(examples)) if has_to_fit else self.objective
        batches = list(self._micro_batches(examples))
        passes = self.team.map(partial(self._backward, objective=objective, totals=totals), batches)
        self.before = [Logprobs(_rollouts(batch), *done[2:]) for batch, done in zip(batches, passes, strict=True)]
        metrics = _combined_metrics(batches, passes)
        if examples and self.config.sampling.top_p == 1:  # otherwise the sampler's log-probs are of a cut distribution
            pairs = ((logprobs, _old_logprobs(rollouts).to(logprobs)) for rollouts, logprobs, _ in self.before)
            metrics |= offpolicy_metrics(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))
        total_loss = 0.0
        for done in passes:  # sum() would round otherwise from Python 3.12 on
            total_loss += done.loss
        found = {"loss": total_loss, "grad_norm": self._clip_gradient(), "learning_rate": learning_rate}
        if not (math.isfinite(total_loss) and math.isfinite(found["grad_norm"])):
            raise NonFiniteError(
                f"expected a finite loss and gradient at step {step}, came loss {total_loss} and gradient norm "
                f"{found['grad_norm']}. The weights were not updated and the logs are complete up to here: lower "
                f"learning_rate (now {learning_rate:g}) or max_grad_norm (now {self.config.max_grad_norm:g})"
            )
        if examples:
            self.optimizer.step()
        return found | metrics

    def _backward(self, examples: Sequence[Example], counts: bool, *, objective: Objective, totals: Totals) -> Pass:
        """Add the gradient of a micro-batch, if it counts, to those of the step."""
        rollouts, temperature = _rollouts(examples), self.config.sampling.temperature
        ref_scores = self.reference.score(rollouts, temperature=temperature) if self.reference else None
        with recomputing(self.policy) if self.config.gradient_checkpointing else nullcontext():
            scores = score(self.policy, rollouts, temperature=temperature)
        loss, metrics = objective.loss(examples, scores, ref_scores, totals)
        (loss if counts else loss * 0).backward()
        counted = scores.entropy.detach()[scores.completion_mask]
        ref_logprobs = ref_scores.logprobs[ref_scores.completion_mask] if ref_scores else None
        metrics = metrics | {"entropy": counted.mean().item()}
        return Pass(loss.item(), metrics, scores.logprobs.detach()[scores.completion_mask], ref_logprobs)

    def _clip_gradient(self) -> float:
        """Scales the gradient down to `max_grad_norm`; returns its 2-norm before that."""
        gradients = [parameter.grad for parameter in self.policy.parameters() if parameter.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        torch.nn.utils.clip_grads_with_norm_(self.policy.parameters(), self.config.max_grad_norm, norm)
        return norm.item()

    @torch.no_grad()
    def with_prox_logprobs(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with the policy's log-probs of now, for the passes that follow the first."""
        batches = list(self._micro_batches(examples))
        found: dict[int, Rollout] = {}
        for batch, rows in zip(batches, self.team.map(self._logprobs, batches), strict=True):
            for rollout, row in zip(_rollouts(batch), rows, strict=True):
                found[id(rollout)] = replace(rollout, prox_logprobs=tuple(row.tolist()))
        return [replace(e, rollouts=tuple(found[id(rollout)] for rollout in e.rollouts)) for e in examples]

    @torch.no_grad()
    def drift(self, groups: Sequence[Group]) -> Drift:
        """How far the policy is from the sampler that wrote these completions, all of them, whatever they train as."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        scores = score(self.policy, rollouts, temperature=self.config.sampling.temperature)
        logprobs = scores.logprobs[scores.completion_mask]
        found = offpolicy_metrics(logprobs, _old_logprobs(rollouts).to(logprobs))
        return Drift(found["offpolicy/kl"], found["offpolicy/m2"])

    @torch.no_grad()
    def _log_ratios(self, examples: Sequence[Example]) -> torch.Tensor:
        """log(pi / pi_old) of all tokens of a step."""
        batches = list(self._micro_batches(examples))
        logprobs = [torch.cat(list(rows)) for rows in self.team.map(self._logprobs, batches)]
        pairs = zip(logprobs, batches, strict=True)
        return torch.cat([now - _old_logprobs(_rollouts(batch)).to(now) for now, batch in pairs])

    def _logprobs(self, examples: Sequence[Example], counts: bool) -> tuple[torch.Tensor, ...]:
        """Of every rollout's completion tokens under the policy, (token,) each."""
        scores = score(self.policy, _rollouts(examples), temperature=self.config.sampling.temperature)
        return tuple(row[mask] for row, mask in zip(scores.logprobs, scores.completion_mask, strict=True))

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


def _old_logprobs(rollouts: Sequence[Rollout]) -> torch.Tensor:
    return torch.tensor([logprob for rollout in rollouts for logprob in rollout.old_logprobs])


def _combined_metrics(batches: Sequence[Sequence[Example]], passes: Sequence[Pass]) -> dict[str, float]:
    """Over a step's micro-batches."""
    examples, tokens = sum(len(batch) for batch in batches), sum(len(done.policy) for done in passes)
    sums: dict[str, float] = {}
    for batch, done in zip(batches, passes, strict=True):
        shares = (len(batch) / examples, len(done.policy) / tokens)
        for name, value in done.metrics.items():
            sums[name] = _combined(name, sums.get(name), value, *shares)
    return sums


def _combined(name: str, before: float | None, value: float, of_examples: float, of_tokens: float) -> float:
    """A metric over the micro-batches so far and one more, which holds these shares of the step."""
    extreme = EXTREMES.get(name.rpartition("_")[2])
    if extreme:
        return value if before is None else extreme(before, value)
    share = 1.0 if name in SHARES else of_tokens if name.startswith(PER_TOKEN) else of_examples
    return (before or 0.0) + share * value
