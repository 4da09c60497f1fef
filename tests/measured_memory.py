"""Real runs of the kit on a small model, and the memory they take, measured from outside by torch's profiler."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from kit.config import RunConfig, Sampling
from kit.learner import Learner
from kit.models.policy import load_policy
from kit.models.tokenizer import build_tokenizer
from kit.objectives import Objective
from kit.reference import Reference
from kit.samplers import TransformersSampler
from kit.sync import Never
from kit.types import Example, Group, Prompt, Rollout, Totals

PROMPT_LENGTH = 48
# 34 million parameters: 8 layers of 512 x (512 + 256 + 256 + 512) + 3 x 512 x 1536, two matrices of 8000 x 512.
LLAMA = LlamaConfig(
    vocab_size=8000, hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=None,
    eos_token_id=None, pad_token_id=None,
)  # fmt: skip


def small_config(**changes: Any) -> RunConfig:
    sizes: dict[str, Any] = {"prompts_per_step": 4, "group_size": 4, "micro_batch_size": 4, "eval_prompts": 1}
    return RunConfig(**(sizes | {"eval_samples": 1, "sampling": Sampling(max_completion_length=64)} | changes))


class Meter:
    """Bytes that torch's CPU allocator has given out since the first action, kernels' scratch included."""

    def __init__(self) -> None:
        self.live = 0

    def peak(self, action: Callable[[], Any]) -> tuple[int, Any]:
        """The most that was held at any time of `action`, and its result."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = action()
        assert profiler.profiler is not None
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        most = self.live
        for event in sorted(events, key=lambda event: event.start_ns()):
            self.live += event.nbytes()
            most = max(most, self.live)
        return most, result


def examples_of(objective: Objective, config: RunConfig) -> tuple[list[Example], Totals]:
    """Every completion of full length, every group with a signal; prompts of unequal length, as prompts are."""
    limit, examples = config.sampling.max_completion_length, []
    for number in range(config.prompts_per_step):
        prompt_ids = tuple(range(100 + number, 100 + number + PROMPT_LENGTH - number % 2))
        rollouts = tuple(
            Rollout(prompt_ids, tuple(range(i, i + limit)), (-9.0,) * limit, (0.0,) * limit, "", "length", 0)
            for i in range(config.group_size)
        )
        group = Group(Prompt(str(number), "", {}), rollouts, tuple(float(i % 2) for i in range(config.group_size)))
        examples += objective.select(group, torch.Generator().manual_seed(0))
    count = config.prompts_per_step * config.group_size
    return examples, Totals(config.prompts_per_step, count, count * limit, len(examples), count * limit)


def written(model_config: LlamaConfig, folder: Path) -> str:
    """A folder with random weights and a tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(model_config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def measured(folder: str, config: RunConfig, objective: Objective) -> dict[str, int]:
    """Peaks, bytes, of the training and of the generation of a second step, and of the sync before it."""
    gc.collect()  # an earlier test's model, were it freed while the meter runs, would be counted as if it were this one
    meter = Meter()
    policy, tokenizer = meter.peak(lambda: load_policy(
        folder, lora=config.lora, quantization=config.quantization, bf16=config.bf16
    ))[1]  # fmt: skip
    gc.collect()  # likewise what loading left behind
    held = [*policy.parameters(), *policy.buffers(), *_quantization_constants(policy)]  # some were mapped from a file
    meter.live = sum({s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in held)}.values())
    sampler = meter.peak(lambda: TransformersSampler(policy, tokenizer))[1]
    reference = meter.peak(lambda: Reference(policy, Never()))[1] if objective.needs_reference else None
    learner = meter.peak(lambda: Learner(policy, objective, reference, config))[1]
    examples, totals = examples_of(objective, config)
    prompts = [Prompt(str(n), "1" * (PROMPT_LENGTH - n % 2), {}) for n in range(config.prompts_per_step)]
    found = {}
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16 and not config.lora, cache_enabled=False):
        meter.peak(lambda: learner.update(examples[:1], totals, 0))  # makes the optimizer's moments
        if not config.lora:
            found["sync"] = meter.peak(lambda: sampler.sync(policy, 1, step=1))[0]
        found["generate"], groups = meter.peak(
            lambda: sampler.generate(prompts, config.group_size, seed=(0,), sampling=config.sampling)
        )
        found["train"] = meter.peak(lambda: learner.update(examples, totals, 1))[0]
    lengths = {len(rollout.completion_ids) for group in groups for rollout in group.rollouts}
    assert max(lengths) == config.sampling.max_completion_length
    return found


def _quantization_constants(model: PreTrainedModel) -> list[torch.Tensor]:
    """What bitsandbytes keeps beside a layer's weight."""
    found = []
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            nested = [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
            found += [state.absmax, state.code, *nested]
        found += [t for name in ("CB", "SCB") if isinstance(t := getattr(parameter, name, None), torch.Tensor)]
    return found
