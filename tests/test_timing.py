"""The estimate of time: operations against torch's own counter on real passes, and limits by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from kit.config import Lora, RunConfig, Sampling
from kit.learner import Learner
from kit.memory import Plan, Vllm
from kit.objectives import DPO, GRPO, Objective
from kit.reference import Reference
from kit.sync import Never
from kit.timing import HARDWARE, Hardware, measured_hardware, step_flops, step_time
from tests.measured_memory import LLAMA, PROMPT_LENGTH, examples_of, small_config

TINY = LlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=256,
)  # fmt: skip


def plan(objective: Objective, model_config: LlamaConfig = TINY, vllm: Vllm | None = None, **changes: Any) -> Plan:
    return Plan(small_config(**changes), objective, PROMPT_LENGTH, 80 * 10**9, vllm, model_config)


@pytest.mark.parametrize("objective", [DPO(), GRPO()])
def test_operations_of_training_are_those_that_torch_counts(objective: Objective) -> None:
    config = small_config()
    policy = AutoModelForCausalLM.from_config(TINY, attn_implementation="eager").eval()  # whose products torch counts
    reference = Reference(policy, Never()) if objective.needs_reference else None
    learner = Learner(policy, objective, reference, config)
    examples, totals = examples_of(objective, config)
    with FlopCounterMode(display=False) as counter:
        learner.update(examples, totals, 0)
    # It leaves out addmm_, which makes the gradient of the output layer: 2 x 300 x 32 a token. Of the last layer's
    # reading of prompts, only keys and values have a backward pass; and half of the prompts are a token shorter.
    counted = counter.get_total_flops() + 2 * 300 * 32 * totals.examples * len(examples[0].rollouts) * 64
    assert step_flops(plan(objective)).train == pytest.approx(counted, rel=0.04)


def test_operations_of_a_token_by_hand() -> None:
    # Without a prompt to speak of, 6 N a trained token; 4 N with frozen weights: N = 3 layers of 4 x 32 x 32 +
    # 3 x 32 x 64, and the output layer of 300 x 32; attention over one token, 4 x 32 a layer.
    n, attention = 3 * (4 * 32 * 32 + 3 * 32 * 64) + 300 * 32, 3 * 4 * 32
    one = {"prompts_per_step": 1, "group_size": 2, "sampling": Sampling(max_completion_length=1)}
    full = Plan(RunConfig(**one), GRPO(), 1, None, None, TINY)
    assert step_flops(full).train == 2 * 3 * (2 * n + attention)
    adapters = Plan(RunConfig(**one, lora=Lora()), GRPO(), 1, None, None, TINY)
    assert step_flops(adapters).train == 2 * 2 * (2 * n + attention)


def test_generation_is_bound_by_bandwidth_until_the_batch_is_large() -> None:
    narrow = Hardware("narrow", 1e15, 1e15, 1e9, 10**9, "made up")
    few = step_time(plan(GRPO(), device="cuda"), narrow)
    fast = step_time(plan(GRPO(), device="cuda"), replace(narrow, bandwidth=1e10))
    assert few.generate[0] > 3 * fast.generate[0]
    assert few.train == fast.train
    # Each of 64 token steps reads all weights: 64 x 4 bytes x 33 million or more, at no more than .85e9 bytes a second.
    slow = step_time(plan(GRPO(), LLAMA), narrow)
    assert slow.generate[0] > 64 * 4 * 33e6 / 0.85e9


def test_vllm_starts_fewer_kernels() -> None:
    with_vllm = step_time(plan(GRPO(), device="cuda", vllm=Vllm()), HARDWARE["H100"])
    without = step_time(plan(GRPO(), device="cuda"), HARDWARE["H100"])
    assert with_vllm.generate[1] < without.generate[1]


def test_the_whole_step_is_the_sum_of_its_parts() -> None:
    found = step_time(plan(DPO()), HARDWARE["RTX 4090"])
    assert found.total == pytest.approx([found.sync[i] + found.generate[i] + found.train[i] for i in (0, 1)])
    assert all(low < high for low, high in (found.sync, found.generate, found.train))
    assert f"{found.total[1]:8.2f} s" in str(found)


def test_adapters_sync_faster_than_all_weights() -> None:
    adapters = step_time(plan(DPO(), LLAMA, lora=Lora()), HARDWARE["H100"])
    assert adapters.sync[1] < step_time(plan(DPO(), LLAMA), HARDWARE["H100"]).sync[0]


def test_this_machine_is_measured() -> None:
    found = measured_hardware(size=128, seconds=0.02)
    assert 1e8 < found.flops_float32 < 1e14 and 1e8 < found.bandwidth < 1e13 and found.total_bytes > 10**8
    assert found.source == "measured"


@pytest.mark.parametrize("name", ["flops_bfloat16", "bandwidth", "total_bytes"])
def test_hardware_that_does_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected {name} above 0"):
        replace(HARDWARE["H100"], **{name: 0})


def test_a_benchmark_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected size >= 1"):
        measured_hardware(size=0)
    with pytest.raises(ValueError, match="seconds above 0"):
        measured_hardware(seconds=0)


def test_torch_counts_a_product_as_we_do() -> None:
    with FlopCounterMode(display=False) as counter:
        torch.ones(3, 5) @ torch.ones(5, 7)
    assert counter.get_total_flops() == 2 * 3 * 5 * 7
