"""Chunked log-probabilities and entropy: exact values, exact gradients, bounded memory."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kit.logprobs import log_kept_mass, sequence_logprob, token_logprobs

CHUNKS = [None, 1, 2, 3, 5]  # of five tokens: all at once and kept, one by one, uneven, uneven in two, exactly all


def example(dtype: torch.dtype = torch.float64, tokens: int = 5, vocab: int = 7, hidden: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocab, (tokens,), generator=generator)
    return source.to(dtype), weight.to(dtype), labels


def plain(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """What every trainer writes: three tensors of (tokens, vocab) in float32."""
    log_softmax = F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1)
    return log_softmax.gather(-1, labels[..., None])[..., 0], -(log_softmax.exp() * log_softmax).sum(-1)


def test_known_probabilities_give_their_logarithm_and_entropy() -> None:
    logits = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).log().expand(3, 3)  # probabilities 1/8, 2/8, 5/8
    logprobs, entropy = token_logprobs(logits, torch.tensor([0, 1, 2]))
    assert logprobs.tolist() == pytest.approx([math.log(1 / 8), math.log(1 / 4), math.log(5 / 8)], abs=1e-12)
    # 1/8 log 8 + 1/4 log 4 + 5/8 log(8/5) = 3/8 log 2 + 1/2 log 2 + 5/8 (3 log 2 - log 5) = 11/4 log 2 - 5/8 log 5
    assert entropy.tolist() == pytest.approx([2.75 * math.log(2) - 0.625 * math.log(5)] * 3, abs=1e-12)


def test_temperature_divides_the_logits() -> None:
    # At temperature 2, logits 2 log(1, 2, 5) are log(1, 2, 5): the row above. Forgetting it would square the odds.
    logits = 2 * torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log()
    logprobs, entropy = token_logprobs(logits, torch.tensor([2]), temperature=2.0)
    assert logprobs.item() == pytest.approx(math.log(5 / 8), abs=1e-12)
    assert entropy.item() == pytest.approx(2.75 * math.log(2) - 0.625 * math.log(5), abs=1e-12)


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
@pytest.mark.parametrize("outputs", [(0,), (1,), (0, 1)], ids=["logprobs", "entropy", "both"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradients_are_those_of_finite_differences(
    chunk_tokens: int | None, outputs: tuple[int, ...], temperature: float
) -> None:
    hidden, weight, labels = example()
    constants: dict[str, Any] = {"temperature": temperature, "chunk_tokens": chunk_tokens}

    def from_hidden(hidden: Tensor, weight: Tensor) -> list[Tensor]:
        results = token_logprobs(hidden, labels, weight=weight, **constants)
        return [results[output] for output in outputs]

    def from_logits(logits: Tensor) -> list[Tensor]:
        results = token_logprobs(logits, labels, **constants)
        return [results[output] for output in outputs]

    assert torch.autograd.gradcheck(from_hidden, (hidden.requires_grad_(), weight.requires_grad_()))
    assert torch.autograd.gradcheck(from_logits, ((hidden @ weight.T).detach().requires_grad_(),))


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_the_plain_path(chunk_tokens: int | None, temperature: float) -> None:
    results = []
    for is_ours in (True, False):
        hidden, weight, labels = example(torch.float32)
        hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
        if is_ours:
            pair = token_logprobs(hidden, labels, weight=weight, temperature=temperature, chunk_tokens=chunk_tokens)
        else:
            pair = plain(hidden @ weight.T, labels, temperature)
        (2 * pair[0].sum() + 3 * pair[1].square().sum()).backward()
        results.append((*pair, hidden.grad, weight.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_side_gets_no_gradient_and_changes_nothing(frozen: str, chunk_tokens: int | None) -> None:
    gradients = []
    for is_frozen in (True, False):
        hidden, weight, labels = example()
        hidden.requires_grad_(not (is_frozen and frozen == "hidden"))
        weight.requires_grad_(not (is_frozen and frozen == "weight"))
        torch.stack(token_logprobs(hidden, labels, weight=weight, chunk_tokens=chunk_tokens)).sum().backward()
        gradients.append({"hidden": hidden.grad, "weight": weight.grad})
    assert gradients[0][frozen] is None
    trained = "weight" if frozen == "hidden" else "hidden"
    assert torch.equal(gradients[0][trained], gradients[1][trained])


def test_leading_axes_are_kept_and_both_inputs_agree() -> None:
    hidden, weight, labels = example(tokens=6)
    hidden, labels = hidden.view(2, 3, -1), labels.view(2, 3)
    from_hidden = token_logprobs(hidden, labels, weight=weight, chunk_tokens=4)
    from_logits = token_logprobs(hidden @ weight.T, labels, chunk_tokens=4)
    for one, other in zip(from_hidden, from_logits, strict=True):
        assert one.shape == (2, 3)
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_tokens", [None, 2])
def test_half_precision_is_computed_in_float32_and_its_gradient_keeps_the_dtype(chunk_tokens: int | None) -> None:
    hidden, weight, labels = example()
    logits = (hidden @ weight.T).bfloat16().requires_grad_()
    reference = logits.detach().double().requires_grad_()
    logprobs, entropy = token_logprobs(logits, labels, temperature=0.7, chunk_tokens=chunk_tokens)
    expected = plain(reference, labels, 0.7)
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropy.double(), expected[1], rtol=1e-6, atol=1e-6)
    (logprobs + entropy).sum().backward()
    (expected[0] + expected[1]).sum().backward()
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16
    assert reference.grad is not None
    assert torch.equal(logits.grad, reference.grad.float().bfloat16())  # rounded once, at the end


def test_half_precision_weights_collect_their_gradient_over_chunks_in_float32() -> None:
    # 1024 equal tokens, one a chunk. In bfloat16 (8 bits) a sum of equal terms stops growing at about 256 of them.
    hidden = torch.ones(1024, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    logprobs, _ = token_logprobs(hidden, torch.zeros(1024, dtype=torch.long), weight=weight, chunk_tokens=1)
    logprobs.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
    assert weight.grad.tolist() == [[512.0], [-512.0]]  # 1024 * (1 - 1/2), 1024 * (0 - 1/2)


@pytest.mark.parametrize("chunk_tokens", [None, 1])
def test_autocast_outside_changes_nothing(chunk_tokens: int | None) -> None:
    gradients = []
    for enabled in (True, False):
        hidden, weight, labels = example(torch.float32)
        hidden.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logprobs, entropy = token_logprobs(hidden, labels, weight=weight, chunk_tokens=chunk_tokens)
        (logprobs + entropy).sum().backward()
        gradients.append(hidden.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("chunk_tokens", [None, 1])
def test_forbidden_tokens_behave_as_if_they_were_not_in_the_vocabulary(chunk_tokens: int | None) -> None:
    allowed = torch.tensor([[0.3, -1.2, 0.5], [1.0, 0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    forbidden = F.pad(allowed.detach(), (0, 2), value=-math.inf).requires_grad_()
    labels = torch.tensor([2, 0])
    gradients = []
    for logits in (allowed, forbidden):
        logprobs, entropy = token_logprobs(logits, labels, chunk_tokens=chunk_tokens)
        gradients.append(torch.autograd.grad((logprobs + 10 * entropy).sum(), logits)[0])
    torch.testing.assert_close(gradients[1], F.pad(gradients[0], (0, 2)), rtol=1e-12, atol=1e-12)


def test_a_certain_token_has_no_entropy_and_the_improbable_one_a_finite_logarithm() -> None:
    logprobs, entropy = token_logprobs(torch.tensor([[1000.0, 0.0]] * 2), torch.tensor([0, 1]))
    assert logprobs.tolist() == [0.0, -1000.0]  # exp(-1000) is 0 in every float; its logarithm is not
    assert entropy.tolist() == [0.0, 0.0]


def test_no_tokens_give_no_numbers_and_a_gradient_of_zero() -> None:
    hidden, weight, labels = example(tokens=0)
    logprobs, entropy = token_logprobs(hidden, labels, weight=weight.requires_grad_())
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.shape == entropy.shape == (0,)
    assert weight.grad is not None and not weight.grad.any()


def test_no_float32_tensor_of_all_tokens_and_vocabulary_is_ever_held() -> None:
    tokens, vocab, chunk_tokens = 64, 1000, 8
    hidden, weight, labels = example(torch.float32, tokens, vocab)
    hidden.requires_grad_()
    logits = (hidden.detach() @ weight.T).bfloat16().requires_grad_()
    inputs: list[dict[str, Any]] = [{"hidden_or_logits": hidden, "weight": weight}, {"hidden_or_logits": logits}]
    for arguments in inputs:
        with _Storage() as storage:
            logprobs, entropy = token_logprobs(labels=labels, chunk_tokens=chunk_tokens, **arguments)
            (logprobs + entropy).sum().backward()
        assert storage.largest_float32 == chunk_tokens * vocab
        with _Storage() as storage:
            log_kept_mass(labels=labels, chunk_tokens=chunk_tokens, top_p=0.9, **arguments)
        assert storage.largest_float32 == chunk_tokens * vocab


def test_memory_at_a_vocabulary_of_128k_is_an_eighth_of_the_plain_path() -> None:
    def train(path: Callable[..., tuple[Tensor, Tensor]]) -> int:
        hidden, weight, labels = example(torch.float32, tokens=256, vocab=2**17, hidden=4)
        hidden.requires_grad_()
        with _Storage() as storage:
            logprobs, entropy = path(hidden, weight, labels)
            (logprobs - 0.01 * entropy).mean().backward()
        return storage.peak_bytes

    plain_bytes = train(lambda hidden, weight, labels: plain(hidden @ weight.T, labels))
    assert plain_bytes > 4 * 256 * 2**17 * 4  # four float32 tensors of all tokens and vocabulary, at least
    assert train(lambda hidden, weight, labels: token_logprobs(hidden, labels, weight=weight)) < plain_bytes / 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 1, 2, 3, -100])}, r"labels in \[0, 7\), came -100 to 3"),
        ({"labels": torch.tensor([0, 1, 2, 3, 7])}, r"labels in \[0, 7\), came 0 to 7"),
        ({"weight": torch.zeros(7, 3)}, "weight in torch.float64 like the hidden states, came torch.float32"),
        ({"temperature": 0.0}, "temperature > 0, came 0.0"),
        ({"temperature": math.nan}, "temperature > 0, came nan"),
        ({"chunk_tokens": 0}, "chunk_tokens >= 1, came 0"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, "labels"),
        ({"weight": torch.zeros(7, 4, dtype=torch.float64)}, "weight"),
    ],
)
def test_a_wrong_argument_is_refused(change: dict[str, Any], message: str) -> None:
    hidden, weight, labels = example()
    arguments: dict[str, Any] = {"hidden_or_logits": hidden, "labels": labels, "weight": weight} | change
    with pytest.raises((ValueError, TypeError), match=message):
        token_logprobs(**arguments)


def test_second_derivatives_are_refused_instead_of_wrong() -> None:
    hidden, weight, labels = example()
    logprobs, _ = token_logprobs(hidden.requires_grad_(), labels, weight=weight)
    (gradient,) = torch.autograd.grad(logprobs.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_sequence_logprob_is_the_sum_over_counted_tokens_whatever_the_rest_holds() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, math.nan, -math.inf]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert sequence_logprob(logprobs, mask).tolist() == [-7.0, -8.0]
    with pytest.raises(ValueError, match="nothing counts"):
        sequence_logprob(logprobs, torch.tensor([[True, True, True], [False, False, False]]))


class _Storage(TorchDispatchMode):
    """Follows the storage behind every tensor that an operation returns, in both passes."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak_bytes = 0
        self.largest_float32 = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.live[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
                if tensor.dtype == torch.float32:
                    self.largest_float32 = max(self.largest_float32, tensor.numel())
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self.live.values()))
        return result
