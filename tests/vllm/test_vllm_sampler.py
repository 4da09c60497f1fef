"""The vLLM sampler in a run, on real vLLM: the policy's own distribution, faults of a sync, resuming, evaluating."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kit.config import Lora, RunConfig, Sampling
from kit.models.policy import load_policy, score
from kit.models.weights import POLICY, weights_of
from kit.objectives import GRPO
from kit.run import Run
from kit.runlog import MEASURED
from kit.samplers import SyncError, TransformersSampler, VLLMSampler
from kit.samplers.vllm_engine import VLLMEngine
from kit.samplers.vllm_start import SamplerDied
from kit.sync import Every
from kit.tasks import Arithmetic
from kit.types import Prompt

SEED = str(Path(__file__).parents[2] / "data" / "seed")
LORA = Lora(lora_r=4, lora_alpha=8.0)
PROMPTS = [Prompt(str(i), [{"role": "user", "content": f"{17 * i + 3}+{29 * i % 83}="}], {}) for i in range(12)]
SHORT = Sampling(max_completion_length=24)
Load = Callable[..., None]


@pytest.fixture(params=[None, LORA], ids=["full", "lora"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[PreTrainedModel, VLLMSampler]]:
    """A policy and its sampler."""
    policy, tokenizer = load_policy(SEED, lora=request.param)
    sampler = VLLMSampler(policy, tokenizer)
    yield policy, sampler
    sampler.engine.close()


def move(policy: PreTrainedModel, by: float = 0.02) -> None:
    """An update of every weight in training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)


def test_it_draws_what_transformers_draws_and_says_so(pair: tuple[PreTrainedModel, VLLMSampler]) -> None:
    policy, sampler = pair
    move(policy)
    sampler.sync(policy, 1, step=1)
    other = TransformersSampler(policy, sampler.tokenizer)
    greedy = Sampling(max_completion_length=24, temperature=0.0)
    ours, theirs = (s.generate(PROMPTS, 1, seed=(0,), sampling=greedy) for s in (sampler, other))
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.rollouts[0].completion_ids == yours.rollouts[0].completion_ids
        assert mine.rollouts[0].text == yours.rollouts[0].text
        assert mine.rollouts[0].finish_reason == yours.rollouts[0].finish_reason
        assert mine.rollouts[0].old_logprobs == pytest.approx(yours.rollouts[0].old_logprobs, abs=1e-4)


def test_sampled_log_probs_are_the_policys(pair: tuple[PreTrainedModel, VLLMSampler]) -> None:
    policy, sampler = pair
    groups = sampler.generate(PROMPTS, 4, seed=(1, 2), sampling=SHORT)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scores = score(policy, rollouts)
    for rollout, row, mask in zip(rollouts, scores.logprobs, scores.completion_mask, strict=True):
        assert rollout.old_logprobs == pytest.approx(row[mask].tolist(), abs=1e-4)
        assert rollout.entropies == () and rollout.version == 0
    assert len({rollout.completion_ids for rollout in groups[0].rollouts}) > 1
    again = sampler.generate(PROMPTS[3:5], 4, seed=(1, 2), sampling=SHORT)  # other neighbours, same draws
    assert [r.completion_ids for g in again for r in g.rollouts] == [
        r.completion_ids for g in groups[3:5] for r in g.rollouts
    ]


def dropped(load: Load) -> Load:
    return lambda tensors, *rest: None


def base_pushed(load: Load) -> Load:
    """The model that the run started from."""
    base = weights_of(load_policy(SEED)[0])

    def push(tensors: Mapping[str, Tensor], *rest: Any) -> None:
        is_adapter = any("lora_" in name for name in tensors)
        load({n: torch.zeros_like(t) for n, t in tensors.items()} if is_adapter else base, *rest)

    return push


def one_tensor_kept(load: Load) -> Load:
    """The last tensor that can be told from its old value keeps it; a matrix moved by one part in a million."""

    def push(tensors: Mapping[str, Tensor], *rest: Any) -> None:
        name = max(tensors)
        load({n: t * (1 + 1e-6) if n == name else t for n, t in tensors.items()}, *rest)

    return push


def rounded(load: Load) -> Load:
    return lambda tensors, *rest: load({n: t.bfloat16().to(t.dtype) for n, t in tensors.items()}, *rest)


def swapped(load: Load) -> Load:
    """Two tensors of one shape in each other's place."""

    def push(tensors: Mapping[str, Tensor], *rest: Any) -> None:
        ends = ("0.mlp.gate_proj.weight", "0.mlp.gate_proj.lora_A.weight", "0.mlp.up_proj.weight",
                "0.mlp.up_proj.lora_A.weight")  # fmt: skip
        first, second = (name for name in tensors if name.endswith(ends))
        load({**tensors, first: tensors[second], second: tensors[first]}, *rest)

    return push


@pytest.mark.parametrize("fault", [dropped, base_pushed, one_tensor_kept, rounded, swapped], ids=lambda f: f.__name__)
def test_the_first_sync_after_a_fault_fails(
    pair: tuple[PreTrainedModel, VLLMSampler], fault: Callable[[Load], Load], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, sampler = pair
    move(policy)
    sampler.sync(policy, 1, step=1)
    for name in ("load_weights", "load_adapter"):
        monkeypatch.setattr(sampler.engine, name, fault(getattr(sampler.engine, name)))
    move(policy, by=1e-3)
    with pytest.raises(SyncError, match=r"before step 2 \(version 2\) did not reach the sampler: .* hash to"):
        sampler.sync(policy, 2, step=2)


def test_an_adapter_of_an_older_version_is_seen(
    pair: tuple[PreTrainedModel, VLLMSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, sampler = pair
    older = {name: tensor.clone() for name, tensor in sampler.weights.tensors().items()}
    move(policy)
    sampler.sync(policy, 1, step=1)
    move(policy, by=1e-4)
    push = sampler._push
    monkeypatch.setattr(sampler, "_push", lambda tensors, version: push(older, version))
    with pytest.raises(SyncError, match="these tensors differ"):
        sampler.sync(policy, 2, step=2)


@pytest.mark.parametrize("pair", [None], ids=["full"], indirect=True)  # an adapter's are kept under its own id
def test_cached_keys_of_old_weights_are_seen(
    pair: tuple[PreTrainedModel, VLLMSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, sampler = pair
    monkeypatch.setattr(sampler.engine.llm, "reset_prefix_cache", lambda: True)
    move(policy, by=1e-6)
    with pytest.raises(SyncError, match="keys and values that the old weights computed"):
        sampler.sync(policy, 1, step=1)


def test_a_fresh_sampler_is_the_policys_and_the_old_one_comes_back(pair: tuple[PreTrainedModel, VLLMSampler]) -> None:
    policy, sampler = pair
    before = sampler.generate(PROMPTS, 2, seed=(0,), sampling=SHORT)
    move(policy)
    with sampler.fresh(policy) as fresh:
        new = fresh.generate(PROMPTS, 2, seed=(0,), sampling=SHORT)
    rollouts = [rollout for group in new for rollout in group.rollouts]
    scores = score(policy, rollouts)
    for rollout, row, mask in zip(rollouts, scores.logprobs, scores.completion_mask, strict=True):
        assert rollout.old_logprobs == pytest.approx(row[mask].tolist(), abs=1e-4)
    assert new != before == sampler.generate(PROMPTS, 2, seed=(0,), sampling=SHORT)


def test_a_load_that_is_no_sync_is_proven_too(
    pair: tuple[PreTrainedModel, VLLMSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, sampler = pair
    kept = {name: tensor.clone() for name, tensor in sampler.weights.tensors().items()}
    move(policy)
    with (
        pytest.raises(SyncError, match="these tensors differ"),
        sampler.fresh(policy),
    ):  # what comes after an evaluation
        for name in ("load_weights", "load_adapter"):
            monkeypatch.setattr(sampler.engine, name, dropped(getattr(sampler.engine, name)))
    with pytest.raises(SyncError, match="these tensors differ"):
        sampler.restore(kept, 0)


def start(folder: Path, lora: Lora | None) -> Run:
    config = RunConfig(
        lora=lora, prompts_per_step=6, group_size=4, max_steps=6, learning_rate=1e-3 if lora else 1e-4, eval_steps=3,
        eval_prompts=8, eval_samples=2, save_steps=2, num_threads=1, sampling=SHORT,
    )  # fmt: skip
    return Run(config, task=Arithmetic(), objective=GRPO(kl_coef=0.01), sync=Every(2), out_dir=folder,
               sampler=VLLMSampler)  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_killed_run_goes_on_with_the_weights_that_its_sampler_held(tmp_path: Path, lora: Lora | None) -> None:
    whole = start(tmp_path / "whole", lora)
    whole.finish()
    whole.sampler.engine.close()
    first = start(tmp_path / "cut", lora)
    list(first.steps(5))  # the checkpoint is of step 4, which is lost with what follows it
    first.sampler.engine.close()
    second = start(tmp_path / "cut", lora)
    assert (second.step, second.sampler.version) == (4, 2)
    second.finish()
    second.sampler.engine.close()
    for name in ("metrics.jsonl", "receipts.jsonl"):
        for one, other in zip(lines(tmp_path / "whole" / name), lines(tmp_path / "cut" / name), strict=True):
            for key in one.keys() - {"seconds", "digest", "sampler_digest"}:
                if not key.startswith(MEASURED):
                    assert other[key] == pytest.approx(one[key], rel=1e-3, abs=1e-4), (name, one["step"], key)


KILLED = """
import sys
from pathlib import Path
from tests.vllm.test_vllm_sampler import LORA, start
for record in start(Path(sys.argv[1]), LORA).steps(6):
    print(record["step"], flush=True)
"""


def test_a_run_killed_with_its_engine_goes_on(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "4":  # the checkpoint is of step 4
                process.kill()
    assert process.returncode == -signal.SIGKILL
    run = start(tmp_path, LORA)
    assert (run.step, run.sampler.version) == (4, 2)
    run.finish()
    run.sampler.engine.close()
    steps = [record["step"] for record in lines(tmp_path / "metrics.jsonl")]
    assert steps == [0, 1, 2, 3, 4, 5, 6]


def test_an_engine_that_dies_stops_the_run_with_what_to_do_and_keeps_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path, None)
    list(run.steps(2))
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def fail(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(run.sampler.engine.llm.llm_engine, "step", fail)
    with pytest.raises(SamplerDied, match=r"out of memory.*Make a new sampler, or resume the run"):
        run.finish()
    run.sampler.engine.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
    monkeypatch.undo()
    again = start(tmp_path, None)
    assert again.finish()["step"] == 6
    again.sampler.engine.close()


@pytest.mark.parametrize(("lora", "wrong"), [(Lora(lora_r=600), "lora_r of at most 512")])
def test_what_vllm_does_not_take_is_refused_before_it_starts(lora: Lora, wrong: str) -> None:
    policy, tokenizer = load_policy(SEED, lora=lora)
    with pytest.raises(ValueError, match=wrong):
        VLLMSampler(policy, tokenizer)


def test_a_finished_runs_adapter_loads_in_vllm(tmp_path: Path) -> None:
    policy, tokenizer = load_policy(SEED, lora=LORA)
    move(policy)
    from kit.models.adapters import adapter_config, save_adapter

    save_adapter(weights_of(policy), policy.peft_config[POLICY], tmp_path / "adapter")
    from safetensors.torch import load_file

    engine = VLLMEngine(SEED, lora=LORA)
    engine.load_adapter(load_file(tmp_path / "adapter" / "adapter_model.safetensors"), adapter_config(policy), 1)
    sampler = VLLMSampler(policy, tokenizer)
    assert engine.checksums() == sampler.engine.checksums()
    assert engine.probe().logprobs == pytest.approx(sampler.engine.probe().logprobs, abs=1e-5)
    for each in (engine, sampler.engine):
        each.close()
