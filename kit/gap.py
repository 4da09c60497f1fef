r"""Where the gap between the trainer's and the sampler's log-probs comes from, token by token.

A token was drawn with the log-prob that the sampler wrote down; the loss scores it with another. Their difference is a
sum of five, each of which replaces one thing by another and keeps all else:

.. math::
    \log\pi^{loss} - \log\mu = \underbrace{\log\pi^{loss} - \log\pi}_{dropout}
    + \underbrace{\log\pi - \log\pi_{old}}_{staleness} + \underbrace{\log\pi_{old} - \log\pi^q_{old}}_{quantization}
    + \underbrace{\log\pi^q_{old} - \log\tilde\pi^q_{old}}_{truncation}
    + \underbrace{\log\tilde\pi^q_{old} - \log\mu}_{numerics}

where pi is the policy, pi_old the weights that the sampler runs, q the sampler's stored form of the frozen model, tilde
the distribution that top-k and top-p leave, and mu what the sampler recorded. All but mu are computed by the trainer's
engine. Only staleness is what importance ratios are meant for.

Under int8 the trainer's own log-probs depend on the batch: a column in which any activation exceeds 6 is not rounded
(arXiv 2208.07339, section 3.2). All of its passes here see the same batches, so this noise is in what compares it to
the sampler only: quantization, or else numerics.

The same gap undivided: verl's `rollout_probs_diff`, NeMo-RL's `gen_kl_error`, prime-rl's `mismatch_kl`. That top-p
alone biases ratios: huggingface/trl#6789, and the mean ratio of 0.896 at top_p = 0.8 of trl PR #7269.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from kit.config import Sampling
from kit.logprobs import log_kept_mass
from kit.masking import right_pad
from kit.models.policy import output_weight, score
from kit.models.weights import AdapterSnapshot, LiveWeights, Snapshot
from kit.types import Rollout

PARTS = ("dropout", "staleness", "quantization", "truncation", "numerics")


@dataclass(frozen=True)
class Gap:
    """The parts of the gap for each completion token, in the order of the rollouts; nats, float64, on the CPU."""

    dropout: Float[Tensor, " token"]
    staleness: Float[Tensor, " token"]
    quantization: Float[Tensor, " token"]
    truncation: Float[Tensor, " token"]  # log of the mass that top-k and top-p leave: never above 0
    numerics: Float[Tensor, " token"]
    total: Float[Tensor, " token"]  # measured by itself; the parts add up to it
    is_cut: Bool[Tensor, " token"]  # the sampler drew it, and the trainer's engine would have cut it

    def metrics(self) -> dict[str, float]:
        """`gap/{part}/...` of each part and of `total`, and `gap/cut`, the fraction of tokens with `is_cut`.

        `mean_abs` and `max_abs` are nats. `kl` is minus the mean: of `total` it estimates KL(sampler || policy) by k1
        (nats a token), and those of the parts add up to it, so that each is the part's contribution.
        """
        found = {"gap/cut": self.is_cut.double().mean().item()}
        for name in (*PARTS, "total"):
            values: Tensor = getattr(self, name)
            found[f"gap/{name}/mean_abs"] = values.abs().mean().item()
            found[f"gap/{name}/max_abs"] = values.abs().max().item()
            found[f"gap/{name}/kl"] = 0.0 - values.mean().item()  # not -0.0
        return found


@torch.no_grad()
def measure_gap(
    policy: PreTrainedModel, behavior: Snapshot, rollouts: Sequence[Rollout], *, sampling: Sampling,
    sampler_base: Snapshot | None = None, top_k: int | None = None, micro_batch_size: int = 64,
) -> Gap:  # fmt: skip
    """The gap between the policy as it is scored for the loss and the sampler, on the sampler's own tokens.

    Draws no random numbers that anything after it would have drawn, and leaves every module in the mode it had.

    Args:
        policy: with whatever modules are in training mode; those alone make dropout.
        behavior: the weights that wrote the rollouts, `sampler.weights`.
        rollouts: at least one, with the sampler's log-probs.
        sampling: how they were drawn: temperature and top_p count.
        sampler_base: the weights of `behavior` on the model as the sampler stores it, if that differs from the
            trainer's: say an NF4 trainer and a bfloat16 sampler. None: quantization is 0, and such a difference is part
            of numerics.
        top_k: of a sampler from elsewhere that has one; the kit's have none.
        micro_batch_size: rollouts scored at a time.

    Raises:
        ValueError: without rollouts, their log-probs, or a temperature above 0; or if `sampler_base` has an adapter
            other than that of `behavior`.
    """
    old_logprobs = _old_logprobs(rollouts)
    if sampling.temperature == 0:
        raise ValueError("expected a temperature above 0, came 0: a greedy choice has no probability to compare")
    _require_same_adapter(behavior, sampler_base)
    batches = [rollouts[first : first + micro_batch_size] for first in range(0, len(rollouts), micro_batch_size)]

    def logprobs(model: PreTrainedModel) -> Tensor:
        found = [score(model, batch, temperature=sampling.temperature) for batch in batches]
        return torch.cat([scores.logprobs[scores.completion_mask].cpu().double() for scores in found])

    with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
        for_loss = logprobs(policy)
    with _evaluating(LiveWeights(policy)) as model:
        now = logprobs(model)
    with _evaluating(behavior) as model:
        then = served = logprobs(model)
    with _evaluating(behavior if sampler_base is None else sampler_base) as model:
        if sampler_base is not None:
            served = logprobs(model)
        found = [_log_kept_mass(model, batch, sampling, top_k) for batch in batches]
    log_mass, is_cut = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    log_mass = log_mass.double()
    return Gap(
        dropout=for_loss - now, staleness=now - then, quantization=then - served, truncation=log_mass,
        numerics=served - log_mass - old_logprobs, total=for_loss - old_logprobs, is_cut=is_cut,
    )  # fmt: skip


@contextmanager
def _evaluating(weights: Snapshot) -> Iterator[PreTrainedModel]:
    """The model with these weights, without dropout; each module gets back the mode it had, whatever its parent's.

    Linear layers drop nothing, and keep their mode: it chooses the arithmetic of quantized ones.
    """
    with weights.active() as model:
        modes = [(module, module.training) for module in model.modules() if not isinstance(module, nn.Linear)]
        for module, _ in modes:
            module.training = False
        try:
            yield model
        finally:
            for module, mode in modes:
                module.training = mode


def _log_kept_mass(
    model: PreTrainedModel, rollouts: Sequence[Rollout], sampling: Sampling, top_k: int | None
) -> tuple[Tensor, Tensor]:
    """`log_kept_mass` of all completion tokens, (token,); a pass over whole sequences, if anything is cut."""
    labels = torch.tensor([token for r in rollouts for token in r.completion_ids], device=model.device)
    if sampling.top_p == 1 and top_k is None:
        return torch.zeros(len(labels)), torch.zeros(len(labels), dtype=torch.bool)
    tokens, attended = right_pad([r.prompt_ids + r.completion_ids[:-1] for r in rollouts], 0)
    tokens, attended = tokens.to(model.device), attended.to(model.device)
    first = torch.tensor([len(r.prompt_ids) - 1 for r in rollouts], device=model.device)  # predicts the first token
    counts = attended & (torch.arange(tokens.shape[1], device=model.device) >= first[:, None])
    hidden = model.get_decoder()(input_ids=tokens, attention_mask=attended, use_cache=False).last_hidden_state[counts]
    weight = output_weight(model)
    return log_kept_mass(
        hidden.to(weight.dtype), labels, weight=weight, temperature=sampling.temperature, top_p=sampling.top_p,
        top_k=top_k,
    )  # fmt: skip


def _old_logprobs(rollouts: Sequence[Rollout]) -> Tensor:
    """The sampler's log-probs of all tokens; raises ValueError if any is missing or no number."""
    if not rollouts:
        raise ValueError("expected at least one rollout, came none: there is no gap to measure")
    for number, rollout in enumerate(rollouts):
        expected, came = len(rollout.completion_ids), len(rollout.old_logprobs)
        if expected != came or not expected:
            raise ValueError(
                f"expected an old_logprob for each completion token, came {came} for the {expected} tokens of rollout "
                f"{number}: the sampler must record them as it generates, or there is nothing to compare with"
            )
    found = torch.tensor([logprob for rollout in rollouts for logprob in rollout.old_logprobs], dtype=torch.float64)
    if not bool(found.isfinite().all()):
        raise ValueError(
            f"expected finite old_logprobs, came {found[~found.isfinite()][0].item()}: a token that was drawn has a "
            "probability above 0, so look at the sampler's logits"
        )
    return found


def _require_same_adapter(behavior: Snapshot, sampler_base: Snapshot | None) -> None:
    """Raise ValueError where staleness would pass for quantization; full weights may differ, and are not compared."""
    if not (isinstance(behavior, AdapterSnapshot) and isinstance(sampler_base, AdapterSnapshot)):
        return
    expected, came = behavior.tensors(), sampler_base.tensors()
    odd = sorted(expected.keys() ^ came.keys()) or sorted(
        name for name, tensor in expected.items() if not torch.equal(tensor.to(came[name]), came[name])
    )
    if odd:
        raise ValueError(
            f"expected sampler_base to hold the adapter of behavior, came one that differs in {odd[:3]}: call "
            "copy_weights(behavior.tensors(), sampler_base.tensors()) first"
        )
