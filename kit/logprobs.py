"""Log-probabilities of the tokens that were sampled, and the entropy they were sampled from, at bounded memory.

The plain path, `log_softmax(logits.float())`, holds several float32 tensors of (tokens, vocab): at a vocabulary of 128k
and 8k tokens, 4 GB each. Here tokens pass through in chunks, in the forward *and* in the backward pass, and the logits
of a chunk are computed again for the gradient. When everything fits into one chunk its log-softmax is kept instead, so
that a tiny vocabulary pays nothing for the bound. The gradients are written out by hand:

.. math:: \\partial\\log p_y / \\partial z_j = 1[j = y] - p_j , \\qquad
          \\partial H / \\partial z_j = -p_j (\\log p_j + H)

Idea of chunking through the output layer: Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models",
https://arxiv.org/abs/2411.09009.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from kit.masking import masked_sum

# Elements of one chunk of float32 logits; about three such tensors live at a time. On CPU 16 MB each: 32 tokens at a
# vocabulary of 128k. An accelerator reads all of `weight` once a chunk, which more tokens must pay for.
CHUNK_FLOATS_CPU = 2**22
CHUNK_FLOATS_ACCELERATOR = 2**25
# exp(-1e4) is 0 even in float64. Logits of -inf (a vocabulary with forbidden tokens) then give 0 * -1e4, not 0 * -inf.
MIN_LOGPROB = -1e4


def token_logprobs(
    hidden_or_logits: Float[Tensor, "*tokens features"],
    labels: Int[Tensor, "*tokens"],
    *,
    weight: Float[Tensor, "vocab features"] | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> tuple[Float[Tensor, "*tokens"], Float[Tensor, "*tokens"]]:
    r"""Log-probability of each label and entropy of each next-token distribution, differentiable and chunked.

    .. math:: \log p_y = z_y/\tau - \log\sum_j e^{z_j/\tau}, \qquad H = -\sum_j p_j \log p_j

    Args:
        hidden_or_logits: logits (..., vocab), or, if `weight` is given, hidden states (..., hidden). Position t must
            already predict label t (no shift happens here). Pass only positions that count: each costs the same.
        labels: token ids in [0, vocab).
        weight: output layer without bias (vocab, hidden), in the dtype of the hidden states; None for logits.
        temperature: tau > 0, which divides the logits. Both results describe the tempered distribution.
        chunk_tokens: tokens a chunk, >= 1; None bounds the chunk by its memory.

    Returns:
        Log-probabilities and full-vocabulary entropies, nats, in float32 (float64 for float64 input).

    Raises:
        ValueError: shapes or dtypes that do not fit, a label outside of the vocabulary, temperature or chunk <= 0.

    >>> logprobs, entropy = token_logprobs(torch.zeros(1, 4), torch.tensor([2]))
    >>> round(logprobs.item(), 4), round(entropy.item(), 4)  # uniform over 4 tokens: -log 4 and log 4
    (-1.3863, 1.3863)
    """
    _require_valid(hidden_or_logits, labels, weight, temperature, chunk_tokens)
    flat = hidden_or_logits.reshape(-1, hidden_or_logits.shape[-1])
    chunk_tokens = _fitting(flat, weight) if chunk_tokens is None else chunk_tokens
    logprobs, entropy = _ChunkedLogprobs.apply(flat, labels.reshape(-1).long(), weight, temperature, chunk_tokens)
    return logprobs.view(labels.shape), entropy.view(labels.shape)


@torch.no_grad()
def log_kept_mass(
    hidden_or_logits: Float[Tensor, "tok features"],
    labels: Int[Tensor, " tok"],
    *,
    weight: Float[Tensor, "vocab features"] | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    chunk_tokens: int | None = None,
) -> tuple[Float[Tensor, " tok"], Bool[Tensor, " tok"]]:
    r"""Log of the probability that top-k and top-p leave in each next-token distribution, chunked; no gradient.

    .. math:: \log\tilde p_y = \log p_y - \log\sum_{j \in \text{kept}} p_j

    Top-k keeps the k most likely tokens; of these, renormalized, top-p keeps each whose more likely ones do not yet
    reach `top_p`, so the first always. Then p is tempered already, as in `kit.samplers.transformers.draw`.

    Args:
        hidden_or_logits, labels, weight, temperature, chunk_tokens: as `token_logprobs`. Sorting holds about twice the
            tensors of a chunk.
        top_p: in (0, 1]; 1 cuts nothing.
        top_k: at least 1; None cuts nothing.

    Returns:
        Log-masses (nats, at most 0), and whether the label itself is cut. Where it is, what is kept is extended down to
        the label, so that its truncated log-prob is finite: a sampler that drew it kept at least that much.

    Raises:
        ValueError: as `token_logprobs`, or top_p or top_k out of range.

    >>> probs = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    >>> mass, is_cut = log_kept_mass(probs.log(), torch.tensor([0, 2]), top_p=0.7)
    >>> [round(x, 4) for x in mass.exp().tolist()], is_cut.tolist()
    ([0.8, 1.0], [False, True])
    """
    _require_valid(hidden_or_logits, labels, weight, temperature, chunk_tokens)
    if not 0 < top_p <= 1 or not (top_k is None or top_k >= 1):
        raise ValueError(f"expected top_p in (0, 1] and top_k >= 1 or None, came top_p={top_p} and top_k={top_k}")
    log_mass = hidden_or_logits.new_zeros(len(labels), dtype=torch.promote_types(hidden_or_logits.dtype, torch.float32))
    is_cut = torch.zeros_like(log_mass, dtype=torch.bool)
    if top_p == 1 and top_k is None:
        return log_mass, is_cut
    chunk_tokens = _fitting(hidden_or_logits, weight) if chunk_tokens is None else chunk_tokens
    with torch.autocast(hidden_or_logits.device.type, enabled=False):
        for rows in _chunks(len(labels), chunk_tokens):
            probs = _log_softmax(hidden_or_logits[rows], weight, temperature).exp_()
            rank = (probs > probs.gather(-1, labels[rows, None].long())).sum(-1)
            ordered = probs.sort(dim=-1, descending=True).values
            reached = ordered.cumsum(-1)
            count = _kept_count(ordered, reached, top_p, top_k)
            is_cut[rows] = rank >= count
            last = torch.maximum(count - 1, rank)
            log_mass[rows] = reached.gather(-1, last[:, None])[:, 0].clamp(max=1.0).log()
    return log_mass, is_cut


def sequence_logprob(
    logprobs: Float[Tensor, "seq tok"], completion_mask: Bool[Tensor, "seq tok"]
) -> Float[Tensor, " seq"]:
    r"""Log-probability of each completion, *summed* over the tokens that count.

    .. math:: \log\pi(y|x) = \sum_t \log\pi(y_t | x, y_{<t})

    Args:
        logprobs: per token, nats.
        completion_mask: True = counts; the end-of-sequence token counts, prompt and padding do not.

    Returns:
        One number a sequence, nats. No length normalization: DPO needs the sum.

    Raises:
        ValueError: if a sequence has no token that counts.

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> sequence_logprob(torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]), mask).tolist()
    [-3.0, -3.0]
    """
    return masked_sum(logprobs, completion_mask, dim=-1)


def _require_valid(
    source: Tensor, labels: Tensor, weight: Tensor | None, temperature: float, chunk_tokens: int | None
) -> None:
    """Raise ValueError where a mistake would otherwise surface deep inside a kernel, or not at all."""
    if labels.shape != source.shape[:-1]:
        raise ValueError(f"expected labels of shape {tuple(source.shape[:-1])}, came {tuple(labels.shape)}")
    if weight is not None and weight.shape[1] != source.shape[-1]:
        raise ValueError(f"expected a weight (vocab, {source.shape[-1]}), came {tuple(weight.shape)}")
    if weight is not None and weight.dtype != source.dtype:
        raise ValueError(f"expected weight in {source.dtype} like the hidden states, came {weight.dtype}: cast one")
    if not temperature > 0:
        raise ValueError(f"expected temperature > 0, came {temperature}: greedy decoding has no log-probabilities")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"expected chunk_tokens >= 1, came {chunk_tokens}: pass None to bound the chunk by memory")
    vocab = source.shape[-1] if weight is None else weight.shape[0]
    if labels.numel():
        lowest, highest = (int(extreme) for extreme in torch.aminmax(labels))
        if lowest < 0 or highest >= vocab:
            raise ValueError(
                f"expected labels in [0, {vocab}), came {lowest} to {highest}: leave out positions that do not count"
            )


def _kept_count(
    ordered: Float[Tensor, "tok vocab"], reached: Float[Tensor, "tok vocab"], top_p: float, top_k: int | None
) -> Int[Tensor, " tok"]:
    """How many of each distribution's probabilities, in descending order and summed up, top-k and then top-p keep."""
    k = ordered.shape[-1] if top_k is None else min(top_k, ordered.shape[-1])
    if top_p == 1:  # of a sum that is rounded up to 1 early, the rule of top-p would cut the rest
        return torch.full_like(ordered[:, 0], k, dtype=torch.long)
    mass = 1.0 if top_k is None else reached[:, k - 1, None]
    return (reached - ordered < top_p * mass).sum(-1).clamp(max=k)


def _fitting(source: Float[Tensor, "tok features"], weight: Float[Tensor, "vocab features"] | None) -> int:
    """How many tokens' logits make up a chunk."""
    vocab = source.shape[-1] if weight is None else weight.shape[0]
    return max(1, (CHUNK_FLOATS_CPU if source.device.type == "cpu" else CHUNK_FLOATS_ACCELERATOR) // vocab)


def _chunks(tokens: int, chunk_tokens: int) -> Iterator[slice]:
    """Slices that cover `tokens` positions in order."""
    return (slice(start, start + chunk_tokens) for start in range(0, tokens, chunk_tokens))


def _log_softmax(
    chunk: Float[Tensor, "tok features"], weight: Float[Tensor, "vocab features"] | None, temperature: float
) -> Float[Tensor, "tok vocab"]:
    """Log-softmax of one chunk in at least float32, as a tensor of our own."""
    logits = chunk if weight is None else F.linear(chunk, weight)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if temperature != 1.0:
        logits = logits.to(dtype) / temperature
    return F.log_softmax(logits, dim=-1, dtype=dtype)


def _finite(log_softmax: Float[Tensor, "tok vocab"], weight: Tensor | None) -> Float[Tensor, "tok vocab"]:
    """Bound log-probabilities in place; not needed after an output layer, whose logits are finite."""
    return log_softmax.clamp_(min=MIN_LOGPROB) if weight is None else log_softmax


def _grad_logits(
    log_softmax: Float[Tensor, "tok vocab"],
    labels: Int[Tensor, " tok"],
    grad_logprobs: Float[Tensor, " tok"],
    entropy: Float[Tensor, " tok"],
    grad_entropy: Float[Tensor, " tok"] | None,
) -> Float[Tensor, "tok vocab"]:
    """Gradient with respect to the tempered logits of one chunk; no gradient of the entropy costs no pass for it."""
    grad = log_softmax.exp()
    if grad_entropy is None:
        grad.mul_(-grad_logprobs[:, None])
    else:
        scale = (log_softmax + entropy[:, None]).mul_(-grad_entropy[:, None])
        grad.mul_(scale.sub_(grad_logprobs[:, None]))
    return grad.scatter_add_(-1, labels[:, None], grad_logprobs[:, None])


class _ChunkedLogprobs(torch.autograd.Function):
    """`token_logprobs` over flat tokens. Autocast is off inside, so that both passes use the dtypes that were given."""

    @staticmethod
    def forward(
        ctx: Any, source: Tensor, labels: Tensor, weight: Tensor | None, temperature: float, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Fill both outputs chunk by chunk; keep the log-softmax only if it is no larger than a chunk."""
        logprobs = source.new_empty(len(labels), dtype=torch.promote_types(source.dtype, torch.float32))
        entropy = torch.empty_like(logprobs)
        log_softmax = None
        with torch.autocast(source.device.type, enabled=False):
            for rows in _chunks(len(labels), chunk_tokens):
                log_softmax = _log_softmax(source[rows], weight, temperature)
                logprobs[rows] = log_softmax.gather(-1, labels[rows, None])[:, 0]
                log_softmax = _finite(log_softmax, weight)
                entropy[rows] = log_softmax.exp().mul_(log_softmax).sum(-1).neg_()
        kept = log_softmax if len(labels) <= chunk_tokens else None
        ctx.save_for_backward(source, labels, weight, entropy, kept)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator hides the signature)
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Compute each chunk's logits again, unless they were kept, and push its gradient through the output layer."""
        source, labels, weight, entropy, kept = ctx.saved_tensors
        to_logprobs = torch.zeros_like(entropy) if grad_logprobs is None else grad_logprobs / ctx.temperature
        to_entropy = None if grad_entropy is None else grad_entropy / ctx.temperature
        grad_source = torch.empty_like(source) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[2]:  # in bfloat16, the small sums of many chunks would round away
            grad_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        with torch.autocast(source.device.type, enabled=False):
            for rows in _chunks(len(labels), ctx.chunk_tokens):
                log_softmax = kept
                if log_softmax is None:
                    log_softmax = _finite(_log_softmax(source[rows], weight, ctx.temperature), weight)
                to_entropy_rows = None if to_entropy is None else to_entropy[rows]
                grad = _grad_logits(log_softmax, labels[rows], to_logprobs[rows], entropy[rows], to_entropy_rows)
                _push_back(grad, source[rows], weight, grad_source, grad_weight, rows)
                del log_softmax, grad  # before those of the next chunk are made
        return grad_source, None, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


def _push_back(
    grad_logits: Tensor,
    source: Tensor,
    weight: Tensor | None,
    grad_source: Tensor | None,
    grad_weight: Tensor | None,
    rows: slice,
) -> None:
    """Write one chunk's gradient into `grad_source[rows]` and add it to `grad_weight`, where these are wanted."""
    grad_logits = grad_logits.to(source.dtype)
    if grad_source is not None:
        if weight is None:
            grad_source[rows] = grad_logits
        else:
            torch.mm(grad_logits, weight, out=grad_source[rows])
    if grad_weight is not None and grad_weight.dtype == source.dtype:
        grad_weight.addmm_(grad_logits.T, source)
    elif grad_weight is not None:
        grad_weight.add_(grad_logits.T @ source)
