"""The learner: one optimizer step on the examples of a batch, in micro-batches whose gradients add up."""

import math
from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from kit.config import RunConfig
from kit.models.policy import score
from kit.objectives import Objective
from kit.reference import Reference
from kit.types import Example, Totals

EXTREMES = {"min": min, "max": max}  # how a metric with this ending combines over micro-batches; others are averaged
SHARES = ("policy_loss",)  # already a micro-batch's share of the step, like the loss
PER_TOKEN = ("entropy", "kl", "clip_ratio/", "offpolicy/")  # means over tokens; the others are means over examples


class NonFiniteError(RuntimeError):
    """The loss or its gradient is no longer a number; the weights are those of before this step."""


class Learner:
    """Policy, optimizer, objective and reference, and nothing about where examples come from."""

    def __init__(
        self, policy: PreTrainedModel, objective: Objective, reference: Reference | None, config: RunConfig
    ) -> None:
        self.policy, self.objective, self.reference, self.config = policy, objective, reference, config
        self.optimizer = torch.optim.AdamW(
            policy.parameters(), config.learning_rate, (config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon, weight_decay=config.weight_decay,
        )  # fmt: skip

    def update(self, examples: Sequence[Example], totals: Totals, step: int) -> dict[str, float]:
        """One optimizer step; metrics are means over examples. Without an example the weights stay as they are.

        Raises:
            NonFiniteError: if the loss or the gradient is not finite; nothing was updated.
        """
        learning_rate = self.config.learning_rate * min(1.0, (step + 1) / max(self.config.warmup_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        sums: dict[str, float] = {}
        tokens = sum(len(rollout.completion_ids) for example in examples for rollout in example.rollouts)
        self.optimizer.zero_grad(set_to_none=True)
        total_loss = 0.0
        for batch in self._micro_batches(examples):
            rollouts = [rollout for example in batch for rollout in example.rollouts]
            temperature = self.config.sampling.temperature
            ref_scores = self.reference.score(rollouts, temperature=temperature) if self.reference else None
            scores = score(self.policy, rollouts, temperature=temperature)
            loss, metrics = self.objective.loss(batch, scores, ref_scores, totals)
            loss.backward()
            total_loss += loss.item()
            counted = scores.entropy.detach()[scores.completion_mask]
            shares = (len(batch) / len(examples), len(counted) / tokens)
            for name, value in (metrics | {"entropy": counted.mean().item()}).items():
                sums[name] = _combined(name, sums.get(name), value, *shares)
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

    def _micro_batches(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """Examples of similar length together, so that little padding is computed; their order changes no sum."""
        ordered = sorted(examples, key=lambda e: max(len(r.prompt_ids) + len(r.completion_ids) for r in e.rollouts))
        batch: list[Example] = []
        for example in ordered:
            if batch and len(batch) * len(batch[0].rollouts) + len(example.rollouts) > self.config.micro_batch_size:
                yield batch
                batch = []
            batch.append(example)
        if batch:
            yield batch


def _combined(name: str, before: float | None, value: float, of_examples: float, of_tokens: float) -> float:
    """A metric over the micro-batches so far and one more, which holds these shares of the step."""
    extreme = EXTREMES.get(name.rpartition("_")[2])
    if extreme:
        return value if before is None else extreme(before, value)
    share = 1.0 if name in SHARES else of_tokens if name.startswith(PER_TOKEN) else of_examples
    return (before or 0.0) + share * value
