"""The estimate of memory against what CUDA allocated; random weights of a real shape, nothing is downloaded."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config

from kit.config import Lora
from kit.learner import Learner
from kit.memory import estimate
from kit.models.policy import load_policy
from kit.objectives import DPO, GRPO, Objective
from kit.reference import Reference
from kit.samplers import TransformersSampler
from kit.sync import Never
from kit.types import Prompt
from tests.measured_memory import PROMPT_LENGTH, examples_of, small_config, written

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
# Qwen2.5-0.5B
QWEN = Qwen2Config(
    vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
    num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True, bos_token_id=None,
    eos_token_id=None, pad_token_id=None,
)  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], Objective]] = {
    "all weights": ({}, DPO()),
    "all weights, bfloat16": ({"bf16": True}, GRPO()),
    "all weights, checkpointed": ({"gradient_checkpointing": True}, GRPO()),
    "LoRA, bfloat16": ({"lora": Lora(), "bf16": True}, DPO()),
    "LoRA, checkpointed": ({"lora": Lora(), "gradient_checkpointing": True}, GRPO()),
}


def peak_of(action: Any) -> int:
    torch.cuda.reset_peak_memory_stats()
    action()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


@pytest.mark.usefixtures("_shapes_unchecked")
@pytest.mark.parametrize("case", CASES)
def test_estimate_is_within_15_percent_of_the_peak_of_the_device(case: str, tmp_path: Path) -> None:
    changes, objective = CASES[case]
    gc.collect()  # an earlier case's model, were it freed while this one is measured, would be counted against it
    config = small_config(device="cuda", prompts_per_step=16, micro_batch_size=16, **changes)
    before = torch.cuda.memory_allocated()
    policy, tokenizer = load_policy(written(QWEN, tmp_path), lora=config.lora, bf16=config.bf16, device="cuda")
    sampler = TransformersSampler(policy, tokenizer)
    reference = Reference(policy, Never()) if objective.needs_reference else None
    learner = Learner(policy, objective, reference, config)
    examples, totals = examples_of(objective, config)
    prompts = [Prompt(str(n), "1" * (PROMPT_LENGTH - n % 2), {}) for n in range(config.prompts_per_step)]
    with torch.autocast("cuda", torch.bfloat16, enabled=config.bf16 and not config.lora, cache_enabled=False):
        learner.update(examples[:1], totals, 0)
        generate = peak_of(lambda: sampler.generate(prompts, config.group_size, seed=(0,), sampling=config.sampling))
        train = peak_of(lambda: learner.update(examples, totals, 1))
    found = estimate(config, objective, prompt_length=PROMPT_LENGTH, model_config=QWEN)
    tensors = {moment.name: moment.total - moment.parts["overhead"] for moment in found.moments}
    training = max(tensors[name] for name in ("output layer", "backward", "optimizer"))
    assert training == pytest.approx(train - before, rel=0.15)
    assert tensors["generate"] == pytest.approx(generate - before, rel=0.15)
