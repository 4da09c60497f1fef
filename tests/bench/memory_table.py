"""What models of 0.5B to 8B need on 24, 40 and 80 GB, as a table: python -m tests.bench.memory_table

DPO with a reference and the sizes of the paper for math (arXiv 2506.21495: 64 prompts x 8 completions of at most 2,048
tokens), prompts of 512 tokens, bfloat16, checkpointed layers, micro-batches of 2, and vLLM that sleeps while the policy
trains and takes what is left while it generates.
"""

from dataclasses import replace
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

from kit.config import Lora, RunConfig, Sampling
from kit.memory import GB, Plan, Vllm
from kit.objectives import DPO


def qwen(hidden: int, intermediate: int, layers: int, heads: int) -> PreTrainedConfig:
    """Qwen2.5, of the sizes whose embeddings are tied."""
    return Qwen2Config(
        vocab_size=151936, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True,
    )  # fmt: skip


MODELS = {
    "Qwen2.5-0.5B": qwen(896, 4864, 24, 14),
    "Qwen2.5-1.5B": qwen(1536, 8960, 28, 12),
    "Qwen2.5-3B": qwen(2048, 11008, 36, 16),
    "Llama-3.1-8B": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072, tie_word_embeddings=False,
    ),
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, 8-bit Adam": {"optim": "adamw_bnb_8bit"},
    "LoRA": {"lora": Lora()},
    "QLoRA": {"lora": Lora(), "quantization": "nf4"},
}
DEVICES = (24 * GB, 40 * GB, 80 * GB)
PAPER = RunConfig(
    device="cuda", bf16=True, gradient_checkpointing=True, prompts_per_step=64, group_size=8, micro_batch_size=2,
    sampling=Sampling(max_completion_length=2048),
)  # fmt: skip


def row(model_config: PreTrainedConfig, config: RunConfig) -> list[str]:
    """GB to train, GB beside vLLM, and what vLLM can hold on each device."""
    cells: list[str] = []
    for total in DEVICES:
        plan = Plan(config, DPO(), 512, total, Vllm(0.01), model_config)
        found = plan.estimate
        training = max(moment.total for moment in found.moments if moment.name != "generate")
        beside = next(m.total - m.parts["vLLM's share"] for m in found.moments if m.name == "generate")
        cells = cells or [f"{training / GB:.1f}", f"{beside / GB:.1f}"]
        share = int(100 * (total - beside) / total) / 100
        if training > total or share <= 0:
            cells.append("no")
            continue
        count = replace(plan, vllm=Vllm(share)).estimate.concurrent_sequences
        cells.append(f"{share:.2f}: {count} sequences" if count else "no room to sample")
    return cells


if __name__ == "__main__":
    print("| model | way | train, GB | beside vLLM, GB | " + " | ".join(f"{d // GB} GB" for d in DEVICES) + " |")
    print("|---|---|---:|---:|---|---|---|")
    for name, model_config in MODELS.items():
        for way, changes in WAYS.items():
            print(f"| {name} | {way} | {' | '.join(row(model_config, replace(PAPER, **changes)))} |", flush=True)
