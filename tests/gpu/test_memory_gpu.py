"""The estimate of memory against what the device's allocator gave out; random weights of a real shape."""

from typing import Any

import pytest
import torch
from transformers import Qwen2Config

from kit.config import Lora
from kit.learner import Learner
from kit.memory import estimate
from kit.models.tokenizer import build_tokenizer
from kit.objectives import DPO, GRPO, Objective
from kit.reference import Reference
from kit.samplers import TransformersSampler
from kit.sync import Never
from kit.types import Prompt
from tests.measured_memory import PROMPT_LENGTH, AdapterReference, CheckpointedLearner, examples_of, load, small_config

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


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.usefixtures("_shapes_unchecked")
@pytest.mark.parametrize("case", CASES)
def test_estimate_is_within_15_percent_of_the_peak_of_the_device(case: str) -> None:
    changes, objective = CASES[case]
    config = small_config(device="cuda", prompts_per_step=16, micro_batch_size=16, **changes)
    before = torch.cuda.memory_allocated()
    policy = load(QWEN, config, None).to("cuda")
    sampler = TransformersSampler(policy, build_tokenizer(), share=config.lora is not None)
    reference = None
    if objective.needs_reference:
        reference = AdapterReference(policy) if config.lora else Reference(policy, Never())
    kind = CheckpointedLearner if config.gradient_checkpointing else Learner
    learner = kind(policy, objective, reference, config)
    examples, totals = examples_of(objective, config)
    prompts = [Prompt(str(n), "1" * (PROMPT_LENGTH - n % 2), {}) for n in range(config.prompts_per_step)]
    learner.update(examples[:1], totals, 0)
    generate = peak_of(lambda: sampler.generate(prompts, config.group_size, seed=(0,), sampling=config.sampling))
    train = peak_of(lambda: learner.update(examples, totals, 1))
    found = estimate(config, objective, prompt_length=PROMPT_LENGTH, model_config=QWEN)
    tensors = {moment.name: moment.total - moment.parts["overhead"] for moment in found.moments}
    training = max(tensors[name] for name in ("output layer", "backward", "optimizer"))
    assert training == pytest.approx(train - before, rel=0.15)
    assert tensors["generate"] == pytest.approx(generate - before, rel=0.15)
