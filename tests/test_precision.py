"""Activations computed twice, and products in bfloat16: what they change, and what they must not."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel

from kit.config import Lora, Sampling
from kit.models.policy import load_policy, precision, recomputing, score
from kit.models.weights import snapshot, weights_of
from kit.objectives import GRPO
from kit.run import Run
from kit.runlog import read_jsonl
from kit.sync import Every
from kit.types import Rollout
from tests.conftest import tiny_run

LORA = Lora(lora_r=4, lora_alpha=8.0)
ROLLOUTS = [
    Rollout(tuple(range(20, 20 + n)), tuple(range(40, 40 + m)), (), (), "", "stop", 0)
    for n, m in ((5, 4), (5, 2), (9, 3), (1, 4))
]
SIZES: dict[str, Any] = {
    "vocab_size": 261, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "eos_token_id": 1,
    "pad_token_id": 0, "bos_token_id": None, "max_position_embeddings": 64,
}  # fmt: skip
DROPOUT: dict[str, dict[str, Any]] = {  # where each architecture keeps it
    "Llama": {"attention_dropout": 0.5, "intermediate_size": 48, "initializer_range": 0.3},
    "Phi3": {"attention_dropout": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "intermediate_size": 48,
             "initializer_range": 0.3},
    "GPT2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "initializer_range": 0.3},
    "OPT": {"dropout": 0.5, "attention_dropout": 0.5, "ffn_dim": 48, "init_std": 0.3, "word_embed_proj_dim": 32},
}  # fmt: skip


@pytest.fixture(scope="module")
def dropping(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of an untrained model whose configuration has dropout everywhere."""
    root = tmp_path_factory.mktemp("dropout")

    def made(name: str) -> Path:
        if not (root / name).exists():
            config = getattr(transformers, f"{name}Config")(**(SIZES | DROPOUT[name]))
            with torch.random.fork_rng():
                torch.manual_seed(0)
                transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
            AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(root / name)
        return root / name

    return made


def scores_and_gradients(model: PreTrainedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    found = score(model, ROLLOUTS)
    return found.logprobs.detach(), gradients(model, found.logprobs.sum() + 0.1 * found.entropy.sum())


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", DROPOUT)
def test_recomputing_gives_the_scores_and_gradients_of_one_pass_without_dropout(
    dropping: Callable[[str], Path], name: str, lora: Lora | None
) -> None:
    model, _ = load_policy(str(dropping(name)), lora=lora)
    expected, expected_gradients = scores_and_gradients(model)
    model.zero_grad(set_to_none=True)
    with recomputing(model):
        found = score(model, ROLLOUTS)
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(found.logprobs, expected, rtol=0, atol=1e-4)
    again = gradients(model, found.logprobs.sum() + 0.1 * found.entropy.sum())  # computes again: after the block
    assert again.keys() == expected_gradients.keys()
    whole = (
        sum(gradient.square().sum() for gradient in expected_gradients.values()) ** 0.5
    )  # some are zero in exact sums
    for key, gradient in again.items():
        error = (gradient - expected_gradients[key]).norm()
        assert error <= 1e-4 * expected_gradients[key].norm() + 1e-6 * whole, key
    assert not any(module.training for module in model.modules())


def test_recomputing_computes_each_layer_again_in_the_backward_pass(dropping: Callable[[str], Path]) -> None:
    model, _ = load_policy(str(dropping("Llama")))
    calls: list[None] = []
    model.get_submodule("model.layers.1.self_attn.q_proj").register_forward_hook(lambda *_: calls.append(None))
    with recomputing(model):
        loss = score(model, ROLLOUTS).logprobs.sum()
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2
    score(model, ROLLOUTS).logprobs.sum().backward()
    assert len(calls) == 4  # of prompts, and of completions; none in the backward pass


def test_a_snapshot_used_between_the_passes_does_not_change_what_is_recomputed(tiny_folder: Path) -> None:
    model, _ = load_policy(str(tiny_folder), lora=LORA)
    taken = snapshot(model, "reference")
    with torch.no_grad():
        for tensor in weights_of(model).values():
            tensor.add_(0.05)
    _, expected = scores_and_gradients(model)
    model.zero_grad(set_to_none=True)
    with recomputing(model):
        found = score(model, ROLLOUTS)
    with taken.active() as reference, torch.no_grad():
        score(reference, ROLLOUTS)
    again = gradients(model, found.logprobs.sum() + 0.1 * found.entropy.sum())
    for key, gradient in again.items():
        assert (gradient - expected[key]).norm() <= 1e-4 * expected[key].norm(), key


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_run_that_recomputes_takes_the_steps_of_one_that_does_not(
    tiny_folder: Path, tmp_path: Path, lora: Lora | None
) -> None:
    found = []
    for again in (False, True):
        run = tiny_run(tiny_folder, tmp_path / str(again), lora=lora, gradient_checkpointing=again, max_steps=3,
                       eval_steps=9, learning_rate=1e-3)  # fmt: skip
        run.finish()
        found.append([(r["loss"], r["grad_norm"]) for r in read_jsonl(tmp_path / str(again) / "metrics.jsonl")[:-1]])
    assert len(found[0]) == 3
    for plain, recomputed in zip(*found, strict=True):
        assert plain == pytest.approx(recomputed, rel=1e-3, abs=1e-5)


def bf16_run(folder: Path, out_dir: Path, **changes: Any) -> Run:
    sizes: dict[str, Any] = {"bf16": True, "eval_steps": 99, "sync": Every(1), "sampling": Sampling(4)}
    return tiny_run(folder, out_dir, **(sizes | changes))


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_bfloat16_trains_float32_weights_with_float32_logprobs_and_learns(
    tiny_folder: Path, tmp_path: Path, lora: Lora | None
) -> None:
    # One batch at every step.
    run = bf16_run(tiny_folder, tmp_path, lora=lora, reuse_epochs=8, max_steps=8, save_steps=8, learning_rate=3e-3)
    before = {name: tensor.clone() for name, tensor in weights_of(run.policy).items()}
    run.finish()
    records = read_jsonl(tmp_path / "metrics.jsonl")[:-1]
    losses = [record["loss"] * 4 / record["groups/used"] for record in records]  # of the groups that are no tie
    assert len(losses) == 8
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # log 2: the policy is its reference
    assert all(after < before for before, after in pairwise(losses)) and losses[-1] < 0.6
    assert {tensor.dtype for tensor in weights_of(run.policy).values()} == {torch.float32}
    assert not any(torch.equal(before[name], tensor) for name, tensor in weights_of(run.policy).items())
    with precision(run.policy, bf16=True), torch.no_grad():
        scores = score(run.policy, ROLLOUTS)
        hidden = run.policy.get_decoder()(input_ids=torch.tensor([[3, 4]]), use_cache=False).last_hidden_state
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
    layer = run.policy.get_submodule("model.layers.0.mlp.up_proj")
    with precision(run.policy, bf16=True):
        assert layer(hidden).dtype == (torch.bfloat16 if lora is None else hidden.dtype)


def test_under_autocast_a_pass_after_an_update_uses_the_new_weights(tiny_folder: Path, tmp_path: Path) -> None:
    run = bf16_run(tiny_folder, tmp_path, max_steps=1)
    with precision(run.policy, bf16=True), torch.no_grad():
        score(run.policy, ROLLOUTS)  # would leave its rounded weights in a cache, were there one
        old = score(run.policy, ROLLOUTS).logprobs
        for tensor in {t.data_ptr(): t for t in weights_of(run.policy).values()}.values():
            tensor.mul_(1.1)
        new = score(run.policy, ROLLOUTS).logprobs
    with precision(run.policy, bf16=True), torch.no_grad():
        assert torch.equal(new, score(run.policy, ROLLOUTS).logprobs) and not torch.equal(new, old)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_in_bfloat16_the_sampler_is_the_policy_up_to_rounding(
    tiny_folder: Path, tmp_path: Path, lora: Lora | None
) -> None:
    bf16_run(tiny_folder, tmp_path, lora=lora, objective=GRPO(), max_steps=3, learning_rate=1e-3).finish()
    for record in read_jsonl(tmp_path / "metrics.jsonl")[:-1]:
        assert record["offpolicy/ratio_min"] > 0.8 and record["offpolicy/ratio_max"] < 1.25
    receipts = read_jsonl(tmp_path / "receipts.jsonl")
    assert len(receipts) == 2 and all(receipt["probe_parity"] == 0.0 for receipt in receipts)
