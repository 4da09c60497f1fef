"""A run's costs, added up by hand from what a run directory holds, and the operations against torch's own counter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from kit.costs import Costs, peak_memory, weight_counts
from kit.run import Run
from kit.runlog import RunDirectoryError

RECORDS = [
    {"step": 0, "num_completions": 8, "num_tokens": 100, "num_trained_tokens": 40, "sync/version": 0, "time/train": 1.0,
     "time/eval": 9.0, "memory/peak": 70},
    {"step": 1, "num_completions": 0, "num_tokens": 0, "num_trained_tokens": 60, "time/train": 0.5, "memory/peak": 90,
     "sync/version": 1},
    {"step": 2, "eval/accuracy": 0.5, "time/eval": 1.0},
]  # fmt: skip


def written(folder: Path, weights: dict[str, int] | None, **objective: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"objective": {"type": "GRPO"} | objective}))
    event = {"event": "start", "step": 0} | ({} if weights is None else {"weights": weights})
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return folder


def test_what_is_recorded_is_added_up(tmp_path: Path) -> None:
    found = Costs.read(written(tmp_path, {"multiplied": 10, "trained": 10}))
    assert found.seconds == {"train": 1.5, "eval": 10.0} and found.training_seconds == 1.5
    assert (found.completions, found.tokens, found.trained_tokens, found.syncs) == (8, 100, 100, 1)
    assert found.peak_memory == 90


@pytest.mark.parametrize(
    ("objective", "weights", "flops"),
    [
        # 100 tokens drawn at 2 x 10, 100 trained on at 6 x 10; a reference scores at 2 x 10; adapters: 4 x 10 + 2 x 1
        ({}, (10, 10), 8000),
        ({"kl_coef": 0.1}, (10, 10), 10_000),
        ({"type": "DPO"}, (10, 10), 10_000),
        ({"type": "DPO"}, (10, 1), 8200),
        ({"type": "GRPO"}, (10, 12), 8000),  # an embedding that trains, untied: looked up, its gradient is no product
    ],
)
def test_operations_by_hand(tmp_path: Path, objective: dict[str, Any], weights: tuple[int, int], flops: int) -> None:
    folder = written(tmp_path, dict(zip(("multiplied", "trained"), weights, strict=True)), **objective)
    assert Costs.read(folder).flops == flops


def test_a_run_of_before_has_no_operations(tmp_path: Path) -> None:
    assert Costs.read(written(tmp_path, None)).flops is None


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"expected a run directory, with a config.json"):
        Costs.read(tmp_path)


@pytest.mark.parametrize("is_tied", [True, False])
def test_weights_that_multiply_are_those_that_torch_counts(is_tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=is_tied, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    tokens = torch.zeros(1, 1, dtype=torch.long)  # of a single token attention takes two products of head_dim a head
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size  # multiplied, but not by a matrix
    attention = 2 * 2 * config.num_hidden_layers * config.hidden_size
    counts = weight_counts(model)
    assert counter.get_total_flops() == 2 * (counts["multiplied"] - norms) + attention
    assert counts["trained"] == sum(parameter.numel() for parameter in model.parameters())


def test_a_real_run_tells_its_costs(start: Callable[..., Run], tmp_path: Path) -> None:
    run = start(tmp_path, max_steps=3)
    run.finish()
    found = Costs.read(tmp_path)
    assert found.trained_tokens is not None and 0 < found.trained_tokens <= found.tokens
    assert found.flops is not None and found.flops > 2 * found.tokens * weight_counts(run.policy)["multiplied"]
    assert found.peak_memory is not None and found.peak_memory <= peak_memory(torch.device("cpu"))
    assert {"generate", "train", "eval"} <= set(found.seconds)
    weights = 4 * sum(parameter.numel() for parameter in run.policy.parameters())  # float32, each once
    assert found.syncs > 0 and found.sync_bytes == found.syncs * weights
