"""Short runs on a GPU: adapters and all weights, each precision, each sampler; every sync proves itself."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.config import Lora, RunConfig, Sampling
from kit.objectives import GRPO
from kit.run import Run
from kit.runlog import read_jsonl
from kit.samplers import SamplerFactory, TransformersSampler, VLLMSampler
from kit.sync import Every
from kit.tasks import Arithmetic

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
LORA = Lora(lora_r=8)
VLLM: SamplerFactory = partial(VLLMSampler, gpu_memory_utilization=0.2, enforce_eager=True, max_model_len=128)
ASLEEP: SamplerFactory = partial(VLLMSampler, gpu_memory_utilization=0.2, max_model_len=128, sleep_mode=True)
EXACT: SamplerFactory = partial(VLLMSampler, gpu_memory_utilization=0.2, max_model_len=128, dtype=torch.float32)
CASES: dict[str, tuple[dict[str, Any], SamplerFactory]] = {
    "all weights": ({}, TransformersSampler),
    "all weights, bfloat16": ({"bf16": True}, TransformersSampler),
    "adapters, bfloat16, checkpointed": (
        {"lora": LORA, "bf16": True, "gradient_checkpointing": True},
        TransformersSampler,
    ),
    "adapters on int8": ({"lora": LORA, "bf16": True, "quantization": "int8"}, TransformersSampler),
    "8-bit Adam": ({"optim": "adamw_bnb_8bit"}, TransformersSampler),
    "all weights, vLLM": ({}, VLLM),
    "all weights, vLLM in float32": ({}, EXACT),
    "adapters, vLLM": ({"lora": LORA, "bf16": True}, VLLM),
    "adapters, vLLM that sleeps": ({"lora": LORA, "bf16": True}, ASLEEP),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_trains_syncs_and_resumes(case: str, tmp_path: Path) -> None:
    changes, sampler = CASES[case]
    config = RunConfig(
        device="cuda", prompts_per_step=8, group_size=4, max_steps=4, eval_steps=2, eval_prompts=8, eval_samples=2,
        save_steps=2, learning_rate=3e-4, sampling=Sampling(32), **changes,
    )  # fmt: skip
    first = Run(
        config, task=Arithmetic(), objective=GRPO(kl_coef=0.01), sync=Every(1), sampler=sampler, out_dir=tmp_path
    )
    list(first.steps(3))
    del first
    again = Run(
        config, task=Arithmetic(), objective=GRPO(kl_coef=0.01), sync=Every(1), sampler=sampler, out_dir=tmp_path
    )
    assert again.step == 2
    again.finish()
    receipts = read_jsonl(tmp_path / "receipts.jsonl")
    assert [receipt["version"] for receipt in receipts] == [1, 2, 3]
    assert all(receipt["digest"] == receipt["sampler_digest"] for receipt in receipts)
    assert len({receipt["digest"] for receipt in receipts}) == 3  # the policy moved
