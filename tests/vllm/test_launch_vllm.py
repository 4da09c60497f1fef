"""The paper's run on math from end to end, every size shrunk and no step left out.

NuminaMath's rows, its template and its verifier, DPO with the reference that follows the sampler, two trainers, a real
vLLM as the sampler, syncs with receipts, a killed sampler, a killed trainer, a checkpoint, resuming with another number
of trainers, and evaluations.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from kit.config import Sampling
from kit.costs import Costs
from kit.distributed import ActorFailed, launch
from kit.distributed.ranks import Ranks
from kit.distributed.replicas import Replicas
from kit.presets import paper_math
from kit.run import Run
from kit.runlog import read_jsonl
from kit.samplers import VLLMSampler
from kit.tasks import NuminaMath
from tests.conftest import happened
from tests.data_files import write

ROWS = 40


def numina(folder: Path) -> NuminaMath:
    """Sums that the embedded model can do, as rows of NuminaMath-1.5."""
    rows = [
        {
            "problem": f"{20 + number}+{31 + 3 * number}=", "answer": str(51 + 4 * number), "solution": "",
            "question_type": "math-word-problem", "source": "olympiads", "problem_is_valid": "Yes",
            "solution_is_valid": "Yes", "synthetic": False,
        }
        for number in range(ROWS)
    ]  # fmt: skip
    return NuminaMath(write(folder / "numina.parquet", rows), num_validation=8, num_test=8)


@pytest.fixture(autouse=True)
def _cluster() -> Iterator[None]:
    yield
    ray.shutdown()


def process_of(actor: Any) -> int:
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))


def test_the_papers_run_on_math_with_every_size_shrunk(tmp_path: Path) -> None:
    preset = paper_math("semi_online", sync_interval=2)
    config = replace(
        preset.config, model_name_or_path="data/seed", prompts_per_step=4, group_size=4, max_steps=6, eval_prompts=8,
        eval_samples=2, eval_steps=3, save_steps=2, num_threads=1, micro_batch_size=4, sampling=Sampling(24),
    )  # fmt: skip

    def start(trainers: int) -> Run:
        return launch(
            config, trainers=trainers, samplers=1, task=numina(tmp_path), objective=preset.objective, sync=preset.sync,
            ref_sync=preset.ref_sync, sampler=VLLMSampler, out_dir=tmp_path / "run", deadline=120.0,
        )  # fmt: skip

    run = start(2)
    assert isinstance(run.sampler, Replicas) and isinstance(run.training.trainer, Ranks)
    with pytest.raises(ActorFailed):
        for record in run.steps(6):
            if record["step"] == 0:
                os.kill(process_of(run.sampler.actors[0]), signal.SIGKILL)
            if record["step"] == 4:
                os.kill(process_of(run.training.trainer.actors[1]), signal.SIGKILL)
    run = start(1)
    assert run.step == 4
    last = run.finish()
    assert happened(tmp_path / "run") == ["start", "launch", "sampler", "error", "resume", "launch"]
    assert 0 <= last["eval/accuracy"] <= 1 and last["step"] == 6
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [record.get("sync/version") for record in records[:-1]] == [0, 0, 2, 2, 4, 4]
    assert [record.get("sync/ref_version") for record in records[:-1]] == [0, 0, 2, 2, 4, 4]
    receipts = read_jsonl(tmp_path / "run" / "receipts.jsonl")
    assert [receipt["version"] for receipt in receipts][:1] == [2] and receipts[-1]["version"] == 4
    for receipt in receipts:
        (engine,) = receipt["samplers"]
        assert engine["digest"] == engine["sampler_digest"] and engine["probe_parity"] < 1e-4
    assert Costs.read(tmp_path / "run").completions == 6 * 16
