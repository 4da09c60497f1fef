"""Requests to vLLM: one a completion, each with a seed of its own, checked before any of them is handed over."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kit.config import Sampling
from kit.types import FinishReason

TEMPERATURES = (0.01, 2.0)  # vLLM raises what is below to .01 without an error, and refuses what is above


@dataclass(frozen=True, slots=True)
class Completion:
    """What one request gave. `logprobs` are nats under the distribution that each token was drawn from."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]  # end token included
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    num_cached_tokens: int  # of the prompt, whose keys and values were there already


def check_requests(
    prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, max_model_len: int, vocab_size: int
) -> None:
    """Raises ValueError for what vLLM would refuse half-way, or change without a word."""
    low, high = TEMPERATURES
    if sampling.temperature and not low <= sampling.temperature <= high:
        raise ValueError(
            f"expected a temperature of 0 or from {low} to {high}, which vLLM takes, got {sampling.temperature}"
        )
    if len(prompt_ids) != len(seeds):
        raise ValueError(f"expected one seed a prompt, came {len(prompt_ids)} prompts and {len(seeds)} seeds")
    if any(not 0 <= seed < 2**63 for seed in seeds):
        raise ValueError("expected seeds from 0 to 2^63 - 1, came others")
    longest = max_model_len - sampling.max_completion_length
    odd = next((i for i, ids in enumerate(prompt_ids) if not 1 <= len(ids) <= longest), None)
    if odd is not None:
        raise ValueError(
            f"expected prompts of 1 to {longest} tokens (max_model_len {max_model_len} less max_completion_length "
            f"{sampling.max_completion_length}), came one of {len(prompt_ids[odd])} at {odd}: shorten it, or lower "
            "max_completion_length"
        )
    strange = {token for ids in prompt_ids for token in ids if not 0 <= token < vocab_size}
    if strange:
        raise ValueError(f"expected token ids below {vocab_size}, the model's vocabulary, came {sorted(strange)[:5]}")


def run_requests(
    llm: Any,
    adapter: Any,
    prompt_ids: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    ends: Sequence[int],
) -> list[Completion]:
    """The completions that `llm`, a vllm.LLM, gives through `adapter`, a LoRARequest or None, in the prompts' order."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    parameters = [
        SamplingParams(
            temperature=sampling.temperature, top_p=sampling.top_p, top_k=0, seed=seed, logprobs=0,
            max_tokens=sampling.max_completion_length, stop_token_ids=list(ends), ignore_eos=True, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        for seed in seeds
    ]  # fmt: skip
    prompts = [{"prompt_token_ids": list(ids)} for ids in prompt_ids]
    outputs = llm.generate(prompts, parameters, use_tqdm=False, lora_request=adapter)
    completions = [_completion(output, ends) for output in outputs]
    if [completion.prompt_ids for completion in completions] != [tuple(ids) for ids in prompt_ids]:
        raise ValueError("expected one completion of each prompt, came others")
    return completions


def _completion(output: Any, ends: Sequence[int]) -> Completion:
    answer = output.outputs[0]
    if answer.finish_reason not in ("stop", "length"):
        raise ValueError(f"expected a completion that ended or was cut off, came {answer.finish_reason!r}")
    tokens = tuple(answer.token_ids)
    logprobs = tuple(step[token].logprob for step, token in zip(answer.logprobs, tokens, strict=True))
    reason: FinishReason = "stop" if tokens[-1] in ends else "length"
    return Completion(tuple(output.prompt_token_ids), tokens, logprobs, reason, output.num_cached_tokens or 0)
