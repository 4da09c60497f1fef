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
    features = hidden_or_logits.shape[-1]
    if chunk_tokens is None:
        on_cpu = hidden_or_logits.device.type == "cpu"
        vocab = features if weight is None else weight.shape[0]
        chunk_tokens = max(1, (CHUNK_FLOATS_CPU if on_cpu else CHUNK_FLOATS_ACCELERATOR) // vocab)
    flat = hidden_or_logits.reshape(-1, features)
    logprobs, entropy = _ChunkedLogprobs.apply(flat, labels.reshape(-1).long(), weight, temperature, chunk_tokens)
    return logprobs.view(labels.shape), entropy.view(labels.shape)


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
