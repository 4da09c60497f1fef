"""A run measures its gap every `gap_steps` steps, and nothing else about it changes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.config import Lora, Sampling
from kit.importance import NoCorrection
from kit.objectives import GRPO
from kit.run import Run
from kit.runlog import is_defined, read_jsonl
from kit.sync import Every, Never
from tests.conftest import untimed
from tests.learning import logprobs_and_entropies

Start = Callable[..., Run]
LORA = Lora(lora_r=4, lora_alpha=8.0)


def test_a_run_measures_every_so_many_steps_and_trains_as_without(start: Start, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"sync": Every(4), "max_steps": 8, "sampling": Sampling(5, top_p=0.9)}
    start(tmp_path / "measured", gap_steps=3, **changes).finish()
    start(tmp_path / "without", **changes).finish()
    records = read_jsonl(tmp_path / "measured" / "metrics.jsonl")
    assert [record["step"] for record in records if "gap/cut" in record] == [0, 3, 6]
    assert all(is_defined(name) for record in records for name in record)
    staleness = {r["step"]: r["gap/staleness/mean_abs"] for r in records if "gap/cut" in r}
    assert staleness[0] == 0 and staleness[3] > staleness[6] > 0  # 3 and 2 updates after a sync
    for record in records:
        if "gap/cut" in record:
            assert record["gap/numerics/max_abs"] < 2e-5 and record["gap/truncation/mean_abs"] > 0
            assert record["gap/dropout/max_abs"] == record["gap/quantization/max_abs"] == record["gap/cut"] == 0
    rest = [{k: v for k, v in json.loads(r).items() if "gap/" not in k} for r in untimed(tmp_path / "measured")]
    assert rest == [json.loads(r) for r in untimed(tmp_path / "without")]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_run_measures_the_tokens_it_trains_on_before_the_update(
    start: Start, tmp_path: Path, lora: Lora | None
) -> None:
    # GRPO with a KL term trains on every completion of the batch, and its distances are of the same tokens:
    # mean(r - 1 - log r) = mean r - 1 + the k1 estimate.
    start(
        tmp_path, gap_steps=1, max_steps=4, objective=GRPO(NoCorrection(), kl_coef=0.1), sync=Never(), lora=lora
    ).finish()
    records = [record for record in read_jsonl(tmp_path / "metrics.jsonl") if "gap/cut" in record]
    assert len(records) == 4
    for record in records:
        expected = record["offpolicy/ratio_mean"] - 1 + record["gap/total/kl"]
        assert record["offpolicy/kl_reverse"] == pytest.approx(expected, abs=1e-5)
    assert records[3]["gap/staleness/mean_abs"] > 1e-4


def test_only_the_first_groups_are_measured(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, gap_steps=1, drift_prompts=1, sync=Never())
    next(run.steps(1))
    rollouts = run.training._batch.groups[0].rollouts  # pyright: ignore[reportOptionalMemberAccess, reportPrivateUsage]
    with run.sampler.weights.active() as behavior, torch.no_grad():
        found = [logprobs_and_entropies(behavior, r)[0] - torch.tensor(r.old_logprobs) for r in rollouts]
    assert run.log.metrics()[0]["gap/total/max_abs"] == pytest.approx(torch.cat(found).abs().max().item(), abs=2e-6)


def test_a_resumed_run_measures_the_same(start: Start, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"gap_steps": 2, "sync": Every(4), "sampling": Sampling(5, top_p=0.9)}
    start(tmp_path / "straight", **changes).finish()
    for _ in start(tmp_path / "stopped", **changes).steps(5):  # past the checkpoint of step 3
        pass
    start(tmp_path / "stopped", **changes).finish()
    assert untimed(tmp_path / "stopped") == untimed(tmp_path / "straight")
