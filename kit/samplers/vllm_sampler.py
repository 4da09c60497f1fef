"""Sampling with vLLM, in this process, from weights that every sync proves to be the policy's.

The sampler's weights are kept twice: in the engine, and as the snapshot `behavior` beside the policy, from which a run
resumes, and with which the trainer can say what the sampler should have computed.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kit.config import Lora, Sampling
from kit.models.adapters import PREFIX, adapter_config
from kit.models.policy import score
from kit.models.weights import LiveWeights, Snapshot, copy_weights, has_adapter, snapshot, weights_of
from kit.samplers.checksum import adapter_checksums, differing, num_bytes, summary, weight_checksums
from kit.samplers.prompts import context_length, end_tokens, groups_of, prompt_ids, require_fit, seed_of
from kit.samplers.receipt import PROBE_TOLERANCE, Receipt
from kit.samplers.sampler import Sampler
from kit.samplers.vllm_engine import VLLMEngine
from kit.samplers.vllm_requests import Completion
from kit.types import Group, Prompt, Rollout

# Nats that the two engines' log-probs of a probe may differ by. Rounding to bfloat16 moves a logit of 16 by 1/16;
# whether every weight arrived is known exactly, from the checksums.
TOLERANCES = {torch.float32: PROBE_TOLERANCE, torch.bfloat16: 0.25, torch.float16: 0.05}
QUANTIZED_TOLERANCE = 1.0  # the engine's base is not the trainer's


class VLLMSampler:
    """See `kit.samplers.TrainingSampler`. Give it to a run as `partial(VLLMSampler, gpu_memory_utilization=0.4)`.

    Args:
        policy: whose weights to copy: an adapter, or all.
        dtype: of the engine; None = float32 on a CPU, bfloat16 on a GPU.
        quantization: of the engine's frozen model under an adapter; the trainer's may differ, and then log-probs do.
        gpu_memory_utilization: share of the GPU that vLLM takes for weights and cache.
        max_model_len: tokens of a prompt with its completion; None = the model's context. On a GPU give what is needed:
            vLLM reads a prompt in one go, and sets room aside for the longest.
        sleep_mode: give the GPU's memory to the trainer between two calls of `generate`.
        enforce_eager: no compiled graphs; None = on a CPU.

    Raises:
        ImportError, ValueError: if vLLM is missing, or cannot do what was asked for.
        SamplerDied: if it cannot load the model.
        SyncError: if the policy's weights did not reach it.
    """

    def __init__(
        self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, dtype: torch.dtype | None = None,
        quantization: Literal["nf4"] | None = None, gpu_memory_utilization: float = 0.4,
        max_model_len: int | None = None, sleep_mode: bool = False, enforce_eager: bool | None = None,
    ) -> None:  # fmt: skip
        self.weights, self.tokenizer, self.version = snapshot(policy, "behavior"), tokenizer, 0
        self._adapter: dict[str, Any] | None = adapter_config(policy) if has_adapter(policy) else None
        self._ends, self._sleep_mode = end_tokens(policy, tokenizer), sleep_mode
        self.engine = VLLMEngine(
            str(policy.name_or_path), end_token_ids=self._ends, dtype=dtype,
            max_model_len=max_model_len or context_length(policy),
            gpu_memory_utilization=gpu_memory_utilization, sleep_mode=sleep_mode, quantization=quantization,
            lora=Lora(self._adapter["r"], self._adapter["lora_alpha"]) if self._adapter else None,
            enforce_eager=enforce_eager,
        )  # fmt: skip
        self._tolerance = (
            QUANTIZED_TOLERANCE if quantization or _is_quantized(policy) else TOLERANCES[self.engine.dtype]
        )
        self._load(self.weights, LiveWeights(policy), step=0)

    def sync(self, policy: PreTrainedModel, version: int, *, step: int) -> Receipt:
        """Copy the weights; then compare checksums of what the engine holds, and the log-probs of a probe.

        The probe fills the prefix cache before the sync, so that old keys and values would be met again after it.
        """
        started = time.perf_counter()
        self._wake()
        change = copy_weights(weights_of(policy), self.weights.tensors())
        self.version = version
        return self._load(self.weights, LiveWeights(policy), change, step=step, started=started)

    def restore(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Take up weights of earlier, as a checkpoint holds them; raises SyncError if they did not reach the engine."""
        copy_weights(tensors, self.weights.tensors())
        self.version = version
        self._wake()
        self._load(self.weights, self.weights, step=version)

    def check_lengths(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Raises ValueError if a prompt is empty, or does not fit the context with a full-length completion."""
        require_fit(self.tokenizer, self.engine.max_model_len, prompts, sampling)

    def generate(
        self, prompts: Sequence[Prompt], group_size: int, *, seed: tuple[int, ...], sampling: Sampling
    ) -> list[Group]:
        """See `Sampler.generate`. vLLM does not tell entropies: those of the rollouts are empty."""
        self._wake()
        ids = [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        seeds = [number for prompt in prompts for number in _seeds(seed, prompt, group_size)]
        drawn = self.engine.generate([row for row in ids for _ in range(group_size)], seeds, sampling)
        if self._sleep_mode:
            self.engine.sleep()
        return groups_of(
            self.tokenizer, prompts, group_size, ids, [list(c.token_ids) for c in drawn],
            [c.logprobs for c in drawn], [], ends=self._ends, version=self.version,
        )  # fmt: skip

    @contextmanager
    def fresh(self, policy: PreTrainedModel) -> Iterator[Sampler]:
        """Samples from the policy as it is now: inside the block the engine holds the policy's weights.

        Raises SyncError, as every load does, if they did not arrive, or the sampler's own did not come back.
        """
        live = LiveWeights(policy)
        self._wake()
        self._load(live, live, step=self.version)
        try:
            yield self
        finally:
            self._wake()
            self._load(self.weights, self.weights, step=self.version)

    def _push(self, tensors: Mapping[str, Tensor], version: int) -> None:
        if self._adapter is None:
            self.engine.load_weights(tensors, version)
        else:
            self.engine.load_adapter(_as_peft_names(tensors), self._adapter, version)

    def _wake(self) -> None:
        """An engine that slept takes up its weights again, which it may have lost; raises SyncError if it did not."""
        if self.engine.is_asleep:
            self.engine.wake()
            self._load(self._held, self._held, step=self.version, is_primed=False)

    def _load(
        self, source: Snapshot, expected: Snapshot, change: tuple[int, float] = (0, 0.0), *, step: int,
        started: float | None = None, is_primed: bool = True,
    ) -> Receipt:  # fmt: skip
        """Hand weights to the engine, and prove that it computes as `expected` does; raises SyncError if not."""
        started = time.perf_counter() if started is None else started
        before = self.engine.probe() if is_primed else None  # an engine that woke has nothing to compute with
        self._held = source
        self._push(source.tensors(), self.version)
        tensors = expected.tensors()
        sent = (
            weight_checksums(tensors, self.engine.dtype)
            if self._adapter is None
            else adapter_checksums(_as_peft_names(tensors), self._adapter, self.engine.dtype)
        )
        held = self.engine.checksums()
        after = self.engine.probe()
        with expected.active() as model:
            parity = _largest_difference(after.logprobs, _scored(model, after))
        receipt = Receipt(
            step, self.version, *change, summary(sent), summary(held), parity,
            0.0 if before is None else _largest_difference(after.logprobs, before.logprobs),
            prefix_cache_reset=after.num_cached_tokens == 0,
            seconds=time.perf_counter() - started,
            bytes=num_bytes(tensors, self.engine.dtype),
            probe_tolerance=self._tolerance,
            differing=tuple(differing(sent, held)[:5]),
        )  # fmt: skip
        receipt.check()
        return receipt


def _as_peft_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}


def _is_quantized(policy: PreTrainedModel) -> bool:
    return getattr(policy.config, "quantization_config", None) is not None


def _seeds(seed: tuple[int, ...], prompt: Prompt, group_size: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed_of(seed, prompt))
    return torch.randint(2**62, (group_size,), generator=generator).tolist()


@torch.no_grad()
def _scored(policy: PreTrainedModel, probe: Completion) -> list[float]:
    """The policy's own log-probs of a probe's tokens."""
    rollout = Rollout(probe.prompt_ids, probe.token_ids, (), (), "", probe.finish_reason, 0)
    return score(policy, [rollout]).logprobs[0].tolist()


def _largest_difference(some: Sequence[float], others: Sequence[float]) -> float:
    """NaN if one of them is."""
    return (torch.tensor(some) - torch.tensor(others)).abs().max().item()
