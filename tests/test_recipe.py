"""From config.json back to the values of a run: what `describe` wrote is read as what it described."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kit.advantages import leave_one_out
from kit.config import Lora, RunConfig, Sampling
from kit.importance import IMPORTANCE
from kit.kl import k1
from kit.objectives import DPO, GRPO, GroupDPO
from kit.pairing import PAIRINGS
from kit.recipe import RecipeError, run_arguments, value_of
from kit.run import Run
from kit.runlog import RunDirectoryError, as_json, describe
from kit.samplers import TransformersSampler, VLLMSampler
from kit.sync import Every, Never, OnDrift, WarmUp, WithSampler
from kit.tasks import Arithmetic, Portion, embedded_chat
from tests.conftest import TinyTask, tiny_run

VALUES: list[Any] = [
    Every(3), Never(), WarmUp(1, 8, steps=20), OnDrift(max_kl=0.1, max_interval=50), WithSampler(),
    DPO(beta=0.3, nll_coef=1.0, nll_normalize="token", denominator="pairs", length_normalize=True),
    *(DPO(pairing=pairing) for pairing in PAIRINGS.values()),
    GRPO(kl_coef=0.2, kl_estimator=k1, advantages=leave_one_out, aggregate="constant", max_completion_length=40),
    *(GRPO(importance=importance()) for importance in IMPORTANCE.values()),
    GroupDPO(grpo_coef=0.1), Arithmetic(terms=4, digits=1, seed=5),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_what_was_described_comes_back(value: Any) -> None:
    assert value_of(json.loads(json.dumps(describe(value)))) == value


def written(folder: Path, **changes: Any) -> Path:
    """A directory with the configuration of a run."""
    import dataclasses

    config = changes.pop("config", RunConfig())
    arguments = {"task": Arithmetic(), "objective": DPO(), "sync": Every(2), "ref_sync": Never(), **changes}
    described = {name: as_json(value) for name, value in arguments.items()}
    described |= {"ref_mixup_alpha": 0.5, "ref_start": "base", "sampler": as_json(changes.get("sampler"))}
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config) | described))
    return folder


@pytest.mark.parametrize(
    "sampler", [TransformersSampler, VLLMSampler, partial(VLLMSampler, gpu_memory_utilization=0.4)]
)
def test_the_arguments_of_a_run_come_back(tmp_path: Path, sampler: Any) -> None:
    config = RunConfig(
        lora=Lora(lora_r=2, lora_target_modules=("q_proj", "v_proj")), quantization="nf4", max_age=3,
        sampling=Sampling(temperature=0.5), learning_rate=3e-6,
    )  # fmt: skip
    found = run_arguments(written(tmp_path, config=config, sampler=sampler))
    came = found.pop("sampler")
    assert found == {
        "config": config, "task": Arithmetic(), "objective": DPO(), "sync": Every(2), "ref_sync": Never(),
        "ref_mixup_alpha": 0.5, "ref_start": "base",
    }  # fmt: skip
    if isinstance(sampler, partial):
        assert (came.func, came.args, came.keywords) == (sampler.func, (), {"gpu_memory_utilization": 0.4})
    else:
        assert came is sampler


def test_portions_with_the_embedded_chat_task_come_back(tmp_path: Path) -> None:
    portions = [Portion(Arithmetic(), 4, 8, 48), Portion(embedded_chat("data/reward_model_biased"), 0)]
    asked = [json.loads(json.dumps(describe(portion))) for portion in portions]
    (path := written(tmp_path, sampler=TransformersSampler) / "config.json").write_text(
        json.dumps(json.loads(path.read_text()) | {"task": asked})
    )
    found = run_arguments(tmp_path)["task"]
    assert [describe(portion) for portion in found] == [describe(portion) for portion in portions]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"type": "MyTask"}}, "no 'MyTask' that it could make by itself; it has .*'Arithmetic'"),
        ({"objective": {"type": "DPO", "pairing": "my_pairs"}}, "no pairing 'my_pairs'; it has .*'best_worst'"),
        ({"sampler": "MySampler"}, "no sampler 'MySampler'"),
        ({"task": {"type": "Chat", "reward_functions": ["politeness"]}}, "with a reward model from data/, came"),
    ],
)
def test_what_is_not_the_kits_own_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path, sampler=TransformersSampler) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(RecipeError, match=message):
        run_arguments(tmp_path)


@pytest.mark.parametrize("content", [None, "{", ""])
def test_a_folder_without_a_readable_configuration_is_no_run(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunDirectoryError, match=r"expected a run directory with a config\.json"):
        run_arguments(tmp_path)


def test_a_task_of_ones_own_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    run = tiny_run(tiny_folder, tmp_path)
    assert isinstance(run, Run)
    with pytest.raises(RecipeError, match=f"no '{TinyTask.__name__}'"):
        run_arguments(tmp_path)
