"""Adapters: a new one changes nothing, a trained one is W + (alpha / r) B A, and PEFT reads what the kit wrote."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from kit.config import Lora, RunConfig, Sampling
from kit.models.adapters import AdapterError, save_adapter
from kit.models.policy import load_policy, score
from kit.models.weights import POLICY, digest, weights_of
from kit.samplers import TransformersSampler
from kit.types import Prompt, Rollout
from tests.conftest import tiny_run

LORA = Lora(lora_r=2, lora_alpha=6.0, lora_target_modules=("q_proj", "v_proj", "down_proj"))
ROLLOUTS = [Rollout((3, 21, 4), (20, 21, 1), (), (), "", "stop", 0), Rollout((9, 8), (7,), (), (), "", "stop", 0)]


def adapted(folder: Path, seed: int = 0, **changes: Any) -> PreTrainedModel:
    return load_policy(str(folder), lora=Lora(**(vars_of(LORA) | changes)), seed=seed)[0]


def vars_of(lora: Lora) -> dict[str, Any]:
    return {name: getattr(lora, name) for name in ("lora_r", "lora_alpha", "lora_target_modules", "adapter_path")}


def move(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in weights_of(model).values():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.3)


@torch.no_grad()
def logprobs(model: PreTrainedModel, rollouts: Sequence[Rollout] = ROLLOUTS) -> torch.Tensor:
    return score(model, rollouts).logprobs


@torch.no_grad()
def plain_logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.tensor([[3, 21, 4, 20, 21, 1]]), use_cache=False).logits


@pytest.fixture
def saved(tiny_folder: Path, tmp_path: Path) -> Path:
    """The folder of a moved adapter."""
    model = adapted(tiny_folder)
    move(model)
    save_adapter(weights_of(model), model.peft_config[POLICY], tmp_path / "adapter")  # pyright: ignore[reportArgumentType]
    return tmp_path / "adapter"


@pytest.mark.parametrize("targets", ["all-linear", "q_proj", ("q_proj", "down_proj")])
def test_a_new_adapter_changes_nothing(tiny_folder: Path, targets: str | tuple[str, ...]) -> None:
    base, _ = load_policy(str(tiny_folder))
    policy = adapted(tiny_folder, lora_target_modules=targets)
    assert torch.equal(plain_logits(policy), plain_logits(base)) and torch.equal(logprobs(policy), logprobs(base))
    for name, tensor in weights_of(policy).items():
        assert bool((tensor == 0).all()) == ("lora_B" in name)


def test_an_adapter_is_trained_in_evaluation_mode_and_nothing_else_is(tiny_folder: Path) -> None:
    policy = adapted(tiny_folder)
    in_training = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert len(in_training) == 2 * 3 * 2 == len(weights_of(policy))  # A and B of three layers in each of two blocks
    assert all("lora_" in name for name in in_training)
    assert not any(module.training for module in policy.modules())


def test_a_trained_adapter_adds_alpha_over_r_times_b_a(tiny_folder: Path) -> None:
    policy = adapted(tiny_folder)
    move(policy)
    by_hand, _ = load_policy(str(tiny_folder))
    weights = weights_of(policy)
    with torch.no_grad():
        for name in {name.split(".lora_")[0] for name in weights}:
            a, b = (weights[f"{name}.lora_{factor}.weight"] for factor in "AB")
            by_hand.get_parameter(f"{name}.weight").add_((6.0 / 2) * b @ a)
    torch.testing.assert_close(plain_logits(policy), plain_logits(by_hand), rtol=0, atol=1e-4)
    torch.testing.assert_close(logprobs(policy), logprobs(by_hand), rtol=0, atol=1e-4)
    assert (logprobs(policy) - logprobs(load_policy(str(tiny_folder))[0])).abs().max() > 0.1


def test_peft_reads_a_saved_adapter(tiny_folder: Path, saved: Path) -> None:
    policy = adapted(tiny_folder)
    move(policy)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    torch.testing.assert_close(plain_logits(PeftModel.from_pretrained(base, saved).eval()), plain_logits(policy))
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder) and config["r"] == 2 and config["lora_alpha"] == 6.0
    assert all(
        name.startswith("base_model.model.model.layers.") for name in load_file(saved / "adapter_model.safetensors")
    )


def test_a_run_saves_an_adapter_that_peft_reads(tiny_folder: Path, tmp_path: Path) -> None:
    run = tiny_run(tiny_folder, tmp_path / "run", lora=LORA, max_steps=2, eval_steps=9)
    run.finish()
    run.save_policy(tmp_path / "policy")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path / "policy").eval()
    torch.testing.assert_close(plain_logits(model), plain_logits(run.policy))
    assert not torch.equal(plain_logits(model), plain_logits(load_policy(str(tiny_folder))[0]))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "policy")) == 261
    assert not (tmp_path / "policy" / "model.safetensors").exists()  # of the base model nothing is written


def test_a_saved_adapter_goes_on(tiny_folder: Path, tmp_path: Path, saved: Path) -> None:
    before, again = adapted(tiny_folder), adapted(tiny_folder, adapter_path=str(saved))
    move(before)
    assert digest(weights_of(again)) == digest(weights_of(before)) and torch.equal(logprobs(again), logprobs(before))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in before.named_parameters() if p.requires_grad
    }
    run = tiny_run(tiny_folder, tmp_path / "run", lora=Lora(2, 6.0, adapter_path=str(saved)), max_steps=1)
    run.finish()
    assert digest(weights_of(run.policy)) != digest(weights_of(before))  # it trains


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], r".*\.layers\.\d+\.(self_attn\.q_proj|mlp\.down_proj)"])
def test_an_adapter_that_peft_wrote_goes_on(tiny_folder: Path, tmp_path: Path, targets: Any) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, lora_dropout=0.1, target_modules=targets)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path)
    again = adapted(tiny_folder, adapter_path=str(tmp_path))
    torch.testing.assert_close(plain_logits(again), plain_logits(model))
    assert not [m for m in again.modules() if isinstance(m, nn.Dropout)]  # the sampler has none


def test_an_adapter_is_float32_on_a_bfloat16_model(tiny_folder: Path) -> None:
    policy, _ = load_policy(str(tiny_folder), lora=LORA, bf16=True)
    assert {tensor.dtype for tensor in weights_of(policy).values()} == {torch.float32}
    others = {p.dtype for name, p in policy.named_parameters() if "lora_" not in name}
    assert others == {torch.bfloat16}
    assert logprobs(policy).dtype == torch.float32
    expected = logprobs(load_policy(str(tiny_folder))[0])
    assert (logprobs(policy) - expected).abs().max() < 0.3  # 8 bits of mantissa, log-probs of about -8


def test_the_seed_makes_the_adapter_and_touches_no_other_randomness(tiny_folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = digest(weights_of(adapted(tiny_folder, seed=3)))
    assert torch.equal(torch.rand(3), expected)
    assert digest(weights_of(adapted(tiny_folder, seed=3))) == first
    assert digest(weights_of(adapted(tiny_folder, seed=4))) != first


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (("q_proj", "nothing"), r"LlamaForCausalLM has no layer 'nothing'; it has \['down_proj', .*'v_proj'\]"),
        ("proj", "has no layer 'proj'"),
        ("lm_head", "'lm_head' is the embedding or the output layer.*leave it out"),
        (("q_proj", "embed_tokens"), "'embed_tokens' is the embedding or the output layer"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused(
    tiny_folder: Path, targets: str | tuple[str, ...], words: str
) -> None:
    with pytest.raises(AdapterError, match=words):
        adapted(tiny_folder, lora_target_modules=targets)


def test_an_output_layer_of_its_own_is_refused_too(tmp_path: Path) -> None:
    from tests.families import write_family

    assert not AutoModelForCausalLM.from_pretrained(write_family("Llama 3", tmp_path)).config.tie_word_embeddings
    with pytest.raises(AdapterError, match="'lm_head' is the embedding or the output layer"):
        adapted(tmp_path, lora_target_modules="lm_head")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_r": 3}, r"has r=2 and alpha=6.0, asked were lora_r=3 and lora_alpha=6.0: ask for the adapter's own"),
        ({"lora_alpha": 4.0}, "lora_alpha=4.0: ask for the adapter's own"),
    ],
)
def test_an_adapter_of_another_rank_or_scale_is_refused(
    tiny_folder: Path, saved: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(AdapterError, match=words):
        adapted(tiny_folder, adapter_path=str(saved), **changes)


@pytest.mark.parametrize("kept", [(), ("adapter_config.json",), ("adapter_model.safetensors",)])
def test_a_folder_that_holds_no_adapter_is_refused(
    tiny_folder: Path, saved: Path, tmp_path: Path, kept: tuple[str, ...]
) -> None:
    folder = tmp_path / "none"
    folder.mkdir()
    for name in kept:
        (folder / name).write_bytes((saved / name).read_bytes())
    with pytest.raises(AdapterError, match=rf"adapter_path: expected a folder with .*adapter_config.*came '{folder}'"):
        adapted(tiny_folder, adapter_path=str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True}, {"bias": "lora_only"}, {"rank_pattern": {"q_proj": 4}}, {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"}, {"peft_type": "IA3"},
    ],
)  # fmt: skip
def test_an_adapter_that_is_more_than_low_rank_is_refused(
    tiny_folder: Path, saved: Path, changes: dict[str, Any]
) -> None:
    file = saved / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(AdapterError, match=next(iter(changes)) if "peft_type" not in changes else "is IA3 with"):
        adapted(tiny_folder, adapter_path=str(saved))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, saved: Path) -> None:
    from tests.families import write_family

    folder = write_family("Llama 3", tmp_path / "wider")
    with pytest.raises(AdapterError, match=r"is of another model than this LlamaForCausalLM.*q_proj"):
        adapted(folder, adapter_path=str(saved))


def test_quantization_without_an_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="quantization must be None without lora, because quantized weights cannot be"):
        RunConfig(quantization="nf4")


def test_gpt2_whose_layers_are_transposed_is_adapted_as_well(tiny_folder: Path, tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=261, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=None,
                        eos_token_id=1, pad_token_id=0, initializer_range=0.3)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    policy, tokenizer = load_policy(str(tmp_path), lora=Lora(2, 6.0))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in weights_of(policy)} == {"c_attn", "c_proj", "c_fc"}
    move(policy)
    groups = TransformersSampler(policy, tokenizer).generate(
        [Prompt("p", "1+1=", {})], 2, seed=(0,), sampling=Sampling(5)
    )
    for rollout, row in zip(groups[0].rollouts, logprobs(policy, groups[0].rollouts), strict=True):
        found = torch.tensor(rollout.old_logprobs)
        torch.testing.assert_close(found, row[: len(found)], rtol=0, atol=1e-4)
