"""The reference sampler: any Hugging Face causal language model, on CPU or GPU.

Written as a loop over the model instead of `generate`, for three things that `generate` does not do: the randomness of
a completion depends on its prompt and seed only, not on its neighbours in the batch; a prompt is read once for its
whole group; a finished completion leaves the batch.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kit.config import Sampling
from kit.masking import right_pad
from kit.models.policy import score
from kit.models.weights import LiveWeights, copy_weights, snapshot, weights_of
from kit.samplers.checksum import differing, num_bytes, summary, weight_checksums
from kit.samplers.kv_cache import PreallocatedCache
from kit.samplers.prompts import context_length, end_tokens, groups_of, prompt_ids, require_fit, seed_of
from kit.samplers.receipt import Receipt
from kit.samplers.sampler import Sampler
from kit.types import Group, Prompt, Rollout

SHRINK_AT = 0.85  # drop finished rows once this fraction or less is still running: copying the cache costs too


class TransformersSampler:
    """Generates with weights of its own, a copy of the policy's that only `sync` changes.

    Args:
        policy: whose weights to copy. `share=True` samples from the policy itself instead: right for evaluation, where
            the samples must be fresh, and wrong for training, where it would make every run online.
    """

    def __init__(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, share: bool = False) -> None:
        self.weights = LiveWeights(policy) if share else snapshot(policy, "behavior")
        self.tokenizer = tokenizer
        self.version = 0
        self._context = context_length(policy)
        self._ends = end_tokens(policy, tokenizer)
        text = "0123456789 + - = The quick brown fox."  # arbitrary and fixed
        ids = tuple(tokenizer(text)["input_ids"])
        self._probe = Rollout(ids[:1], ids[1:], (), (), text, "stop", 0)

    def sync(self, policy: PreTrainedModel, version: int, *, step: int) -> Receipt:
        """Copy the weights, then compare checksums and the log-probs of a fixed text on both sides."""
        started = time.perf_counter()
        source, target = weights_of(policy), self.weights.tensors()
        with torch.no_grad():
            expected = score(policy, [self._probe]).logprobs
        before = self.probe()
        tensors, delta_norm = copy_weights(source, target)
        after = self.probe()
        self.version = version
        sent, held = weight_checksums(source), weight_checksums(target)
        receipt = Receipt(
            step, version, tensors, delta_norm, summary(sent), summary(held),
            (after - expected).abs().max().item(), (after - before).abs().max().item(),
            prefix_cache_reset=True,  # no cache outlives a call of `generate`
            seconds=time.perf_counter() - started,
            bytes=num_bytes(source),
            differing=tuple(differing(sent, held)[:5]),
        )  # fmt: skip
        receipt.check()
        return receipt

    @torch.no_grad()
    def probe(self) -> torch.Tensor:
        """Log-probs of a fixed text under its weights, nats a token."""
        with self.weights.active() as model:
            return score(model, [self._probe]).logprobs

    def restore(self, tensors: Mapping[str, torch.Tensor], version: int) -> None:
        """Take up weights of earlier, as a checkpoint holds them."""
        copy_weights(tensors, self.weights.tensors())
        self.version = version

    def fresh(self, policy: PreTrainedModel) -> AbstractContextManager[Sampler]:
        """Samples from the policy itself."""
        return nullcontext(TransformersSampler(policy, self.tokenizer, share=True))

    def check_lengths(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Raises ValueError if a prompt is empty, or does not fit the model's context with a full-length completion."""
        require_fit(self.tokenizer, self._context, prompts, sampling)

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Prompt], group_size: int, *, seed: tuple[int, ...], sampling: Sampling
    ) -> list[Group]:
        """See `Sampler.generate`. Log-probs and entropies are of the distribution sampled from, in nats."""
        ids = [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        uniforms = torch.cat([_uniforms(seed, p, group_size, sampling.max_completion_length) for p in prompts])
        with self.weights.active() as model:
            tokens, logprobs, entropies, lengths = self._decode(model, ids, group_size, uniforms, sampling)
        return groups_of(
            self.tokenizer, prompts, group_size, ids,
            [row[:n] for row, n in zip(tokens, lengths, strict=True)],
            [row[:n] for row, n in zip(logprobs, lengths, strict=True)],
            [row[:n] for row, n in zip(entropies, lengths, strict=True)],
            ends=self._ends, version=self.version,
        )  # fmt: skip

    def _decode(
        self,
        model: PreTrainedModel,
        prompt_ids: list[list[int]],
        group_size: int,
        uniforms: torch.Tensor,
        sampling: Sampling,
    ) -> tuple[list[list[int]], list[list[float]], list[list[float]], list[int]]:
        device, limit = model.device, sampling.max_completion_length
        # Left padding: every row then writes its next token into the same column of the cache.
        flipped, mask = right_pad([row[::-1] for row in prompt_ids], 0)
        tokens, mask = flipped.flip(1).to(device), mask.flip(1).to(device)
        is_padded = not bool(mask.all())
        cache = PreallocatedCache(model.config.get_text_config().num_hidden_layers, tokens.shape[1] + limit)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = _forward(model, tokens, mask if is_padded else None, positions, cache)
        cache.repeat_rows(group_size)
        logits, mask, position = (x.repeat_interleave(group_size, 0) for x in (logits, mask, positions[:, -1:] + 1))
        ends = torch.tensor(self._ends, device=device)
        rows = torch.arange(len(logits), device=device)  # which completion each row of the batch is
        running = torch.ones(len(rows), dtype=torch.bool, device=device)
        out_tokens = torch.zeros((len(rows), limit), dtype=torch.long, device=device)
        out_logprobs, out_entropies = (torch.zeros((len(rows), limit), device=device) for _ in range(2))
        lengths = torch.full((len(rows),), limit, device=device)
        uniforms = uniforms.to(device)
        for step in range(limit):
            token, logprob, entropy = draw(logits, uniforms[rows, step], sampling)
            out_tokens[rows, step], out_logprobs[rows, step], out_entropies[rows, step] = token, logprob, entropy
            ended = torch.isin(token, ends) & running
            lengths[rows[ended]] = step + 1
            running &= ~ended
            still = int(running.sum())
            if still == 0 or step + 1 == limit:
                break
            if still <= SHRINK_AT * len(rows):
                cache.keep_rows(running)
                rows, token, position, mask = rows[running], token[running], position[running], mask[running]
                running = running[running]
            if is_padded:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = _forward(model, token[:, None], mask if is_padded else None, position, cache)
            position = position + 1
        return out_tokens.tolist(), out_logprobs.tolist(), out_entropies.tolist(), lengths.tolist()


def _forward(
    model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor,
    cache: PreallocatedCache,
) -> torch.Tensor:  # fmt: skip
    output = model(
        input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
        logits_to_keep=1,
    )  # fmt: skip
    return output.logits[:, -1].float()


def draw(
    logits: torch.Tensor, uniform: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One token a row by inverting the cumulative distribution at `uniform`; no top-k.

    Args:
        logits: (row, vocab).
        uniform: (row,) in [0, 1); the same number always gives the same token.

    Returns:
        token ids, their log-probs and the entropy of the distribution drawn from (nats), each (row,). A greedy draw
        (temperature 0) reports those of the untempered distribution.

    >>> logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]]))
    >>> [draw(logits, torch.tensor([u]), Sampling())[0].item() for u in (0.0, 0.19, 0.21, 0.69, 0.71, 0.999)]
    [0, 0, 1, 1, 2, 2]
    """
    logprobs = torch.log_softmax(logits if sampling.temperature == 0 else logits / sampling.temperature, dim=-1)
    probs = logprobs.exp()
    if sampling.top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True)
        # A token stays if the more likely ones before it do not yet reach top_p; the first always does.
        dropped = torch.zeros_like(probs, dtype=torch.bool).scatter(
            1, order, ordered.cumsum(-1) - ordered >= sampling.top_p
        )
        probs = probs.masked_fill(dropped, 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
        logprobs = probs.log()
    if sampling.temperature == 0:
        token = logits.argmax(-1)
    else:
        cumulative = probs.cumsum(-1)
        # The last entry is 1 only up to rounding; and `right` never lands on a token of probability zero.
        token = torch.searchsorted(cumulative, (uniform[:, None] * cumulative[:, -1:]), right=True).squeeze(1)
        token = token.clamp(max=logits.shape[-1] - 1)
    entropy = -torch.special.xlogy(probs, probs).sum(-1)
    return token, logprobs.gather(1, token[:, None]).squeeze(1), entropy


def _uniforms(seed: tuple[int, ...], prompt: Prompt, group_size: int, limit: int) -> torch.Tensor:
    """(group, tok) uniforms that depend on the seed and the prompt's id alone."""
    generator = torch.Generator().manual_seed(seed_of(seed, prompt))
    return torch.rand((group_size, limit), generator=generator)
