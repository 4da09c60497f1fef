"""The estimate of memory against counts by hand, published sizes, and what real runs of the kit take."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from kit.config import Lora, RunConfig, Sampling
from kit.memory import GB, Estimate, Vllm, estimate, load_model_config
from kit.memory.plan import moment_bytes
from kit.models.dry_run import DryModel
from kit.objectives import DPO, GRPO, GroupDPO
from tests.measured_memory import LLAMA, PROMPT_LENGTH, Meter, measured, small_config, written

LLAMA_3_1_8B: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN_2_5_HALF_B: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": True,
}  # fmt: skip
TINY: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 2, "max_position_embeddings": 128, "pad_token_id": None,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
FAMILIES: dict[str, PreTrainedConfig] = {
    "Llama": LlamaConfig(**TINY, tie_word_embeddings=False),
    "Llama, tied": LlamaConfig(**TINY, tie_word_embeddings=True),
    "Qwen2": Qwen2Config(**{k: v for k, v in TINY.items() if k != "head_dim"}),
    "Qwen3": Qwen3Config(**TINY),
    "Gemma 2": Gemma2Config(**TINY, final_logit_softcapping=None),
    "Gemma 3": Gemma3TextConfig(**TINY, layer_types=["sliding_attention", "sliding_attention", "full_attention"]),
    "Mistral": MistralConfig(**TINY),
    "Phi-3": Phi3Config(**{k: v for k, v in TINY.items() if k != "head_dim"}),
}


def moments(found: Estimate) -> dict[str, int]:
    return {moment.name: moment.total for moment in found.moments}


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_real_model(family: str) -> None:
    real = AutoModelForCausalLM.from_config(FAMILIES[family])
    dry = DryModel(FAMILIES[family], RunConfig())
    assert dry.parameters == sum(p.numel() for p in real.parameters())
    assert dry.weight_bytes == 4 * dry.parameters + sum(b.nbytes for b in real.buffers())


def test_parameters_of_a_tiny_llama_by_hand() -> None:
    # A layer: queries and output 2 x 8 x 8, keys and values 2 x 8 x (2 heads of 2), gate, up and down 3 x 8 x 12, two
    # norms of 8: 128 + 64 + 288 + 16 = 496. Three of them, a norm of 8, and embeddings of 100 x 8, twice unless tied.
    assert DryModel(FAMILIES["Llama"], RunConfig()).parameters == 3 * 496 + 8 + 2 * 800
    assert DryModel(FAMILIES["Llama, tied"], RunConfig()).parameters == 3 * 496 + 8 + 800


def test_adapters_of_a_tiny_llama_by_hand() -> None:
    # Rank 2 on an (out, in) matrix: 2 x (in + out). A layer: queries and output 2 x 16, keys and values 2 x (8 + 4),
    # gate, up and down 3 x (8 + 12): 2 x (32 + 24 + 60) = 232. Only queries and values: 2 x (16 + 12) = 56.
    config = RunConfig(lora=Lora(lora_r=2))
    assert sum(DryModel(FAMILIES["Llama"], config).trained) == 3 * 232
    config = RunConfig(lora=Lora(lora_r=2, lora_target_modules=("q_proj", "v_proj")))
    assert sum(DryModel(FAMILIES["Llama"], config).trained) == 3 * 56


@pytest.mark.parametrize(
    ("model_config", "published"),
    [(LlamaConfig(**LLAMA_3_1_8B), 8_030_261_248), (Qwen2Config(**QWEN_2_5_HALF_B), 494_032_768)],
)
def test_parameters_are_those_published(model_config: PreTrainedConfig, published: int) -> None:
    assert DryModel(model_config, RunConfig()).parameters == published


def test_weights_of_an_8b_model_by_hand() -> None:
    model_config = LlamaConfig(**LLAMA_3_1_8B)
    # Outside of the two matrices of 128256 x 4096 and 65 norms of 4096, all is linear layers: 6,979,321,856 weights.
    linear, rest = 6_979_321_856, 2 * 128256 * 4096 + 65 * 4096
    assert linear + rest == 8_030_261_248
    rows = 32 * (4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096)
    expected = {
        RunConfig(): 4 * (linear + rest),
        RunConfig(bf16=True): 4 * (linear + rest),  # trained weights stay float32
        RunConfig(lora=Lora(), bf16=True): 2 * (linear + rest),
        # 4 bits, 8 a block of 64 and 32 a block of 256 blocks: .5 + 1/64 + 4/16384 = .515869 bytes
        RunConfig(lora=Lora(), bf16=True, quantization="nf4"): 0.515869140625 * linear + 2 * rest,
        RunConfig(lora=Lora(), bf16=True, quantization="int8"): linear + 4 * rows + 2 * rest,
    }
    for config, size in expected.items():
        buffers = 2 * 64 * 4  # rotary frequencies, and as they were at first
        assert DryModel(model_config, config).weight_bytes == pytest.approx(size + buffers, abs=1)


def test_moments_of_adam_by_hand() -> None:
    assert moment_bytes(10_000, "adamw_torch") == 80_000
    assert moment_bytes(10_000, "adamw_bnb_8bit") == 2 * 10_000 + 2 * 4 * 40  # 40 blocks of 256
    assert moment_bytes(4095, "adamw_bnb_8bit") == 8 * 4095  # bitsandbytes leaves small tensors in 32 bits


def test_keys_and_values_by_hand() -> None:
    # 4 prompts x 4 completions of 48 + 64 tokens; 8 layers of keys and values, 4 heads of 64, float32.
    found = estimate(small_config(), DPO(), prompt_length=PROMPT_LENGTH, model_config=LLAMA)
    generate = next(moment for moment in found.moments if moment.name == "generate")
    assert generate.parts["keys and values"] == 4 * 4 * 112 * 8 * 2 * 4 * 64 * 4


def test_plain_logits_by_hand() -> None:
    # Micro-batches of 4 completions of 64 tokens, three float32 numbers a token and word.
    found = estimate(small_config(), DPO(), prompt_length=PROMPT_LENGTH, model_config=LLAMA)
    assert found.plain_logits == 3 * 4 * 64 * 8000 * 4


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "all weights, with a reference": ({}, DPO()),
    "all weights, one micro-batch": ({"micro_batch_size": 8}, DPO()),
    "all weights, no reference": ({"micro_batch_size": 2}, GRPO()),
    "all weights, checkpointed": ({"micro_batch_size": 8, "gradient_checkpointing": True}, GRPO()),
    "all weights, bfloat16": ({"bf16": True}, DPO()),
    "LoRA": ({"lora": Lora()}, DPO()),
    "LoRA, whole groups": ({"lora": Lora(), "micro_batch_size": 16}, GroupDPO()),
    "LoRA, checkpointed": ({"lora": Lora(), "micro_batch_size": 16, "gradient_checkpointing": True}, GRPO()),
    "LoRA, bfloat16": ({"lora": Lora(), "bf16": True}, DPO()),
    "QLoRA": ({"lora": Lora(), "quantization": "nf4"}, DPO()),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("_shapes_unchecked")
@pytest.mark.parametrize("case", CASES)
def test_estimate_is_within_a_twentieth_of_the_measured_peak(case: str, tmp_path: Path) -> None:
    changes, objective = CASES[case]
    config = small_config(**changes)
    peaks = measured(written(LLAMA, tmp_path), config, objective)
    found = moments(estimate(config, objective, prompt_length=PROMPT_LENGTH, model_config=LLAMA))
    training = max(found[name] for name in ("output layer", "backward", "optimizer"))
    assert training == pytest.approx(peaks["train"], rel=0.05)
    if not (config.bf16 and config.lora):  # a product in bfloat16 of a CPU copies the output layer once a prompt
        assert found["generate"] == pytest.approx(peaks["generate"], rel=0.05)
    if not config.lora:
        assert found["sync"] == pytest.approx(peaks["sync"], rel=0.05)


def test_the_meter_measures() -> None:
    def forty_and_twenty_megabytes() -> torch.Tensor:
        kept, dropped = torch.zeros(10_000_000), torch.ones(5_000_000)
        del dropped
        return kept

    meter = Meter()
    peak, _ = meter.peak(forty_and_twenty_megabytes)
    assert (peak, meter.live) == (60_000_000, 40_000_000)


BIG = RunConfig(
    device="cuda",
    bf16=True,
    prompts_per_step=8,
    micro_batch_size=8,
    eval_prompts=8,
    sampling=Sampling(max_completion_length=256),
)


def of_8b(config: RunConfig, **changes: Any) -> Estimate:
    model_config = LlamaConfig(**{**LLAMA_3_1_8B, "num_hidden_layers": 4})
    return estimate(config, DPO(), prompt_length=256, model_config=model_config, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch_size": 2},
        {"gradient_checkpointing": True},
        {"optim": "adamw_bnb_8bit"},
        {"lora": Lora()},
        {"lora": Lora(), "quantization": "nf4"},
    ],
)
def test_each_knob_saves(changes: dict[str, Any]) -> None:
    before, after = of_8b(BIG), of_8b(replace(BIG, **changes))
    assert moments(after)["backward"] < moments(before)["backward"]


def test_advice_holds_what_it_promises() -> None:
    found = of_8b(replace(BIG, optim="adamw_torch"), total_bytes=60 * GB)
    assert found.fits is False and found.advice[0].fits
    for advice in found.advice:
        change, _, value = advice.change.partition("=")
        if change in ("micro_batch_size", "prompts_per_step", "eval_prompts"):
            again = of_8b(replace(BIG, **{change: int(value)}), total_bytes=60 * GB)
            assert again.peak.total == advice.peak and again.fits == advice.fits


def test_without_a_single_remedy_several_are_combined() -> None:
    found = of_8b(BIG, total_bytes=6 * GB)
    assert "lora=Lora()" in found.advice[0].change and found.advice[0].fits
    assert not any(advice.fits for advice in found.advice[1:])


def test_vllm_takes_its_share_while_it_generates_only_if_it_sleeps() -> None:
    asleep = of_8b(BIG, total_bytes=80 * GB, vllm=Vllm(0.25, sleeps=True))
    awake = of_8b(BIG, total_bytes=80 * GB, vllm=Vllm(0.25, sleeps=False))
    assert moments(awake)["backward"] - moments(asleep)["backward"] == 20 * GB
    assert moments(awake)["generate"] == moments(asleep)["generate"]
    # 20 GB less the model in bfloat16, 2 x (4 x 218,112,000 + 1,050,673,152 + 4096) bytes, less 1 GB; a sequence has
    # 512 tokens, a token 4 layers x 2 x 8 heads x 128 numbers of 2 bytes.
    room = 19 * GB - 2 * (4 * 218_112_000 + 2 * 128256 * 4096 + 4096)
    assert asleep.concurrent_sequences == room // (512 * 4 * 2 * 8 * 128 * 2)


def test_what_is_printed_names_the_moment_and_every_sum() -> None:
    found = of_8b(BIG, total_bytes=20 * GB)
    assert f"at the moment '{found.peak.name}': does not fit" in str(found)
    assert all(f"{moment.total / GB:,.2f}" in str(found) for moment in found.moments)
    assert found.markdown().count("|") == len(found.rows()[0]) * (len(found.rows()) + 1) + len(found.rows()) + 1


def test_a_config_on_disk_is_all_it_needs(tmp_path: Path) -> None:
    LlamaConfig(**LLAMA_3_1_8B).save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    found = estimate(replace(BIG, model_name_or_path=str(tmp_path)), DPO(), prompt_length=8)
    assert found.parameters == 8_030_261_248


def test_an_absent_model_is_an_error_with_a_remedy() -> None:
    with pytest.raises(FileNotFoundError, match=r"absent or gated, or there is no network.*give its folder"):
        load_model_config("nobody/nothing-8B")


@pytest.mark.parametrize("size", ["vocab_size", "hidden_size", "num_hidden_layers"])
def test_a_config_without_a_size_is_an_error(size: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", **{k: v for k, v in LLAMA_3_1_8B.items() if k != size}})
    )
    with pytest.raises(ValueError, match=f"without {size}"):
        load_model_config(str(tmp_path))


def test_another_familys_names_of_sizes_are_understood(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)  # n_embd, n_layer, n_head
    assert load_model_config(str(tmp_path)).num_hidden_layers == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_length": 0}, "expected prompt_length >= 1"),
        ({"prompt_length": 200}, "expected prompt_length .* <= 256, the model's context"),
        ({"prompt_length": 8, "total_bytes": 0}, "expected total_bytes above 0"),
        ({"prompt_length": 8, "vllm": Vllm()}, "expected total_bytes with vllm"),
        ({"prompt_length": 8, "config": small_config(group_size=1)}, "group_size must be at least 2"),
        (
            {"prompt_length": 8, "config": small_config(lora=Lora(lora_target_modules=("query",)))},
            "expected lora_target_modules among .*q_proj.*came",
        ),
        ({"prompt_length": 8, "model_config": MixtralConfig(**TINY)}, "mixture of experts"),
        ({"prompt_length": 8, "model_config": Gemma2Config(**TINY)}, "soft-capped"),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(arguments.pop("config", small_config(eval_prompts=1)), DPO(), **({"model_config": LLAMA} | arguments))


@pytest.mark.parametrize("share", [0, 1, 1.5])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="gpu_memory_utilization in"):
        Vllm(share)
