"""Quantized bases under adapters, and Adam with 8-bit moments: the arithmetic of bitsandbytes 0.50, on a CPU.

The oracle is a plain float32 model that holds the weights as bitsandbytes' own functions read them back.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from kit.checkpoint import load_optimizer_tensors, optimizer_tensors
from kit.config import Lora, Sampling
from kit.models.adapters import AdapterError, Quantization
from kit.models.policy import load_policy, recomputing, score
from kit.models.weights import weights_of
from kit.samplers import TransformersSampler
from kit.sync import Every
from kit.types import Prompt, Rollout
from tests.conftest import tiny_run, untimed
from tests.families import write_family

LORA = Lora(lora_r=4, lora_alpha=8.0)
KINDS: list[Quantization] = ["nf4", "int8"]
LARGEST_ERROR = {"nf4": 0.15, "int8": 0.02}  # of a weight, against the largest of its layer
ROLLOUTS = [
    Rollout(tuple(range(70, 70 + n)), tuple(range(100, 100 + m)), (), (), "", "stop", 0)
    for n, m in ((3, 5), (14, 2), (3, 1), (8, 8))
]
SHORT: dict[str, Any] = {
    "sync": Every(2), "ref_sync": Every(2), "prompts_per_step": 3, "group_size": 3, "max_steps": 3, "eval_steps": 3,
    "eval_prompts": 2, "eval_samples": 1, "save_steps": 1, "learning_rate": 3e-3, "sampling": Sampling(6),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("Llama 3", tmp_path_factory.mktemp("quantization"))


def moved(folder: Path, quantization: Quantization | None, **changes: Any) -> tuple[PreTrainedModel, Any]:
    """A policy whose adapter, the same for every kind of base, counts."""
    policy, tokenizer = load_policy(str(folder), lora=LORA, quantization=quantization, **changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in weights_of(policy).values():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    return policy, tokenizer


def frozen(policy: PreTrainedModel) -> dict[str, torch.Tensor]:
    """All that is not an adapter: quantized numbers, their scales, and what stayed in floats."""
    return {name: tensor.clone() for name, tensor in policy.state_dict().items() if ".lora_" not in name}


def floats_of(policy: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The same policy on a float32 base."""
    plain, _ = moved(folder, None)
    with torch.no_grad():
        for name, layer in policy.named_modules():
            if isinstance(layer, bnb.nn.Linear4bit):
                read = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            elif isinstance(layer, bnb.nn.Linear8bitLt):
                read = int8_vectorwise_dequant(layer.weight.data, layer.state.SCB)
            else:
                continue
            plain.get_parameter(f"{name}.weight").copy_(read)
    return plain


def scores_and_gradients(policy: PreTrainedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    policy.zero_grad(set_to_none=True)
    found = score(policy, ROLLOUTS)
    (found.logprobs * torch.arange(1.0, 33.0).view(4, 8)).sum().backward()
    return found.logprobs.detach(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def sample(policy: PreTrainedModel, tokenizer: Any) -> list[Rollout]:
    sampler = TransformersSampler(policy, tokenizer, share=True)
    prompts = [Prompt(text, text, {}) for text in ("1+1", "a longer prompt")]
    return [r for group in sampler.generate(prompts, 2, seed=(0,), sampling=Sampling(6)) for r in group.rollouts]


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_but_the_output_is_quantized_and_near_what_it_was(folder: Path, kind: Quantization) -> None:
    policy, _ = load_policy(str(folder), lora=LORA, quantization=kind)
    quantized = [n for n, m in policy.named_modules() if isinstance(m, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)]
    assert len(quantized) == 2 * 7 and not any("lm_head" in name for name in quantized)
    source = AutoModelForCausalLM.from_pretrained(folder)
    plain = floats_of(policy, folder)
    for name in quantized:
        found = plain.get_parameter(f"{name}.weight")
        expected = source.get_parameter(f"{name.removesuffix('.base_layer')}.weight")
        error = (found - expected).abs().max() / expected.abs().max()
        assert 0 < error < LARGEST_ERROR[kind], name


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_gradients_are_those_of_the_floats_before_and_after_sampling(
    folder: Path, kind: Quantization
) -> None:
    policy, tokenizer = moved(folder, kind)
    expected, expected_gradients = scores_and_gradients(floats_of(policy, folder))
    for _ in range(2):
        found, gradients = scores_and_gradients(policy)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert gradients.keys() == expected_gradients.keys() and len(gradients) == len(weights_of(policy))
        for name, gradient in gradients.items():
            assert (gradient - expected_gradients[name]).norm() <= 1e-4 * expected_gradients[name].norm(), name
        sample(policy, tokenizer)  # a pass without gradients, which must not change the ones with


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollouts_scores_do_not_depend_on_its_neighbours_and_are_the_samplers(
    folder: Path, kind: Quantization
) -> None:
    policy, tokenizer = moved(folder, kind)
    rollouts = sample(policy, tokenizer)
    with torch.no_grad():
        together = score(policy, rollouts).logprobs
        for rollout, row in zip(rollouts, together, strict=True):
            alone = score(policy, [rollout]).logprobs[0]
            torch.testing.assert_close(row[: len(alone)], alone, rtol=0, atol=1e-4)
            torch.testing.assert_close(torch.tensor(rollout.old_logprobs), alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_gives_the_same_scores_and_gradients(folder: Path, kind: Quantization) -> None:
    policy, _ = moved(folder, kind)
    expected, expected_gradients = scores_and_gradients(policy)
    modes = [module.training for module in policy.modules()]
    with recomputing(policy):
        found, gradients = scores_and_gradients(policy)
    assert [module.training for module in policy.modules()] == modes
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    for name, gradient in gradients.items():
        assert (gradient - expected_gradients[name]).norm() <= 1e-4 * expected_gradients[name].norm(), name


@pytest.mark.parametrize(("kind", "bf16"), [("nf4", False), ("nf4", True), ("int8", False), ("int8", True)])
def test_a_run_trains_the_adapter_alone_and_resumes_to_the_same_metrics(
    folder: Path, tmp_path: Path, kind: Quantization, bf16: bool
) -> None:
    start = partial(tiny_run, folder, lora=LORA, quantization=kind, bf16=bf16, **SHORT)
    run = start(tmp_path / "straight")
    base, before = frozen(run.policy), {k: t.clone() for k, t in weights_of(run.policy).items()}
    run.finish()
    after = frozen(run.policy)
    assert base.keys() == after.keys() and all(torch.equal(base[name], after[name]) for name in base)
    assert not any(torch.equal(before[name], tensor) for name, tensor in weights_of(run.policy).items())
    next(start(tmp_path / "killed").steps(1))
    start(tmp_path / "killed").finish()
    assert untimed(tmp_path / "killed") == untimed(tmp_path / "straight")


def test_nf4_on_a_cpu_refuses_layers_without_whole_blocks(tmp_path: Path) -> None:
    """bitsandbytes 0.50 reads them back wrongly there: 96 inputs with 2.5 times the error of 64."""
    folder = write_family("Llama 3", tmp_path, intermediate_size=96)
    with pytest.raises(AdapterError, match=r"multiple of 64 inputs, came .*mlp\.down_proj with 96: take quant.*'int8'"):
        load_policy(str(folder), lora=LORA, quantization="nf4")
    policy, _ = moved(folder, "int8")  # the remedy
    found, _ = scores_and_gradients(policy)
    torch.testing.assert_close(found, scores_and_gradients(floats_of(policy, folder))[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("changes", [{"lora": LORA, "quantization": "nf4"}, {"optim": "adamw_bnb_8bit"}])
def test_without_bitsandbytes_the_error_says_how_to_get_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"(nf4|adamw_bnb_8bit)' needs bitsandbytes, .*pip install -e '\.\[gpu\]'"):
        tiny_run(folder, tmp_path, **changes)


def test_adam_with_8_bit_moments_stays_near_adam_and_goes_on_from_a_checkpoint() -> None:
    from bitsandbytes.optim import AdamW8bit

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 80, generator=generator)  # bitsandbytes keeps the moments of less than 4096 numbers whole
    eight, full = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours, adam = AdamW8bit([eight], 1e-2), torch.optim.AdamW([full], 1e-2, weight_decay=1e-2)
    for _ in range(5):
        eight.grad = torch.randn(start.shape, generator=generator)
        full.grad = eight.grad.clone()
        ours.step(), adam.step()
    assert 0 < (eight - full).norm() < 0.03 * (full - start).norm()
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(ours).items()}
    assert kept["0/state1"].dtype == kept["0/state2"].dtype == torch.uint8 and kept["0/step"] == 5
    again = nn.Parameter(eight.detach().clone())
    loaded = AdamW8bit([again], 1e-2)
    load_optimizer_tensors(loaded, kept)
    again.grad = torch.randn(start.shape, generator=generator)
    eight.grad = again.grad.clone()
    loaded.step(), ours.step()
    assert torch.equal(again, eight)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_run_with_8_bit_moments_trains_and_resumes(folder: Path, tmp_path: Path, lora: Lora | None) -> None:
    start = partial(tiny_run, folder, lora=lora, optim="adamw_bnb_8bit", **SHORT)
    run = start(tmp_path / "straight")
    before = {name: tensor.clone() for name, tensor in weights_of(run.policy).items()}
    run.finish()
    assert not any(torch.equal(before[name], tensor) for name, tensor in weights_of(run.policy).items())
    eight_bit = [
        name for name, t in optimizer_tensors(run.training.trainer.optimizer).items() if t.dtype == torch.uint8
    ]
    assert bool(eight_bit) == (lora is None)  # these adapters are small enough to be kept whole
    next(start(tmp_path / "killed").steps(1))
    start(tmp_path / "killed").finish()
    assert untimed(tmp_path / "killed") == untimed(tmp_path / "straight")
