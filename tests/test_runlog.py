"""The run directory: nothing in it is lost, overwritten or undefined."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kit.advantages import centered, standardized
from kit.importance import M2PO, PPOClip
from kit.objectives import DPO, GRPO, GroupDPO
from kit.rewards.completion import completion_text
from kit.run import Run
from kit.runlog import METRICS, Clock, RunDirectoryError, RunLog, describe, is_defined, read_jsonl
from kit.samplers import Overlapped
from kit.sync import Every, Never, OnDrift
from kit.tasks.task import Judging
from tests.conftest import TinyTask, contents

CONFIG = {"seed": 0, "sampling": {"top_p": 1.0}, "sync": {"type": "Every", "interval": 3}}
ARMS: dict[str, dict[str, Any]] = {
    "dpo": {"objective": DPO(nll_coef=0.1, entropy_coef=0.1), "sync": Every(3), "sampler": Overlapped},
    "grpo": {"objective": GRPO(PPOClip(clip_eps_high=0.3), kl_coef=0.1), "sync": OnDrift(max_m2=10.0)},
    "group dpo": {"objective": GroupDPO(grpo_coef=0.1, grpo=GRPO(M2PO())), "sync": Every(2)},
}
SYNCS = {"dpo": [3], "grpo": [], "group dpo": [2, 4]}  # the second never drifts as far as that


def partly_judged(completion_ids: Sequence[Sequence[int]], log_metric: Any, **columns: Any) -> list[float | None]:
    log_metric("judged_first", float(completion_ids[0][1] % 3 != 0))
    return [None if ids[1] % 3 == 0 else float(ids[0] % 2 == 0) for ids in completion_ids]


def longer(completions: Sequence[Any], baseline: Sequence[Any], **columns: Any) -> list[float]:
    return [float(completion_text(a) > completion_text(b)) for a, b in zip(completions, baseline, strict=True)]


@pytest.fixture(scope="module")
def logged(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run directories of short runs with every option of the objectives."""
    from tests.conftest import tiny_run

    found = {}
    for name, arm in ARMS.items():
        found[name] = tmp_path_factory.mktemp(name)
        task = TinyTask(reward=partly_judged)
        tiny_run(tiny_folder, found[name], max_steps=5, gap_steps=2, task=task, **arm).finish()
    judged = TinyTask(name="judged", judging=Judging(longer, {f"judged/validation/{i}": ("a",) for i in range(6)}))
    found["judged"] = tmp_path_factory.mktemp("judged")
    tiny_run(tiny_folder, found["judged"], max_steps=1, task=judged).finish()
    return found


@pytest.mark.parametrize("arm", ARMS)
def test_every_logged_metric_is_defined(logged: dict[str, Path], arm: str) -> None:
    names = {name for record in read_jsonl(logged[arm] / "metrics.jsonl") for name in record}
    assert len(names) > 30
    assert {name for name in names if not is_defined(name)} == set()


def test_every_definition_is_used(logged: dict[str, Path]) -> None:
    names = {name for path in logged.values() for record in read_jsonl(path / "metrics.jsonl") for name in record}
    unused = {pattern for pattern in METRICS if not any(fnmatch(name, pattern) for name in names)}
    assert unused == {"task/*/*"}  # the names of the others, once more for each of several tasks: test_workload.py


def test_a_name_that_nobody_defined_is_told_apart() -> None:
    assert is_defined("rewards/math_reward/mean") and is_defined("time/generate") and is_defined("eval/pass_at_4_low")
    assert not is_defined("lossy") and not is_defined("rewards/math_reward/median")
    assert is_defined("task/chat/eval/win_rate_low") and is_defined("task/arithmetic/reward")
    assert not is_defined("task/chat/lossy") and not is_defined("task/chat")


@pytest.mark.parametrize("arm", ARMS)
def test_the_run_directory_holds_what_it_promises(logged: dict[str, Path], arm: str) -> None:
    assert {path.name for path in logged[arm].iterdir()} == {
        "config.json", "env.json", "status.json", "metrics.jsonl", "events.jsonl", "rollouts", "checkpoints",
        "evaluations",
        *(["receipts.jsonl"] if SYNCS[arm] else []),
    }  # fmt: skip
    assert json.loads((logged[arm] / "status.json").read_text())["state"] == "finished"
    versions = json.loads((logged[arm] / "env.json").read_text())["packages"]
    assert versions.keys() >= {"torch", "transformers", "math-verify", "reasoning-gym"}
    assert [receipt["step"] for receipt in read_jsonl(logged[arm] / "receipts.jsonl")] == SYNCS[arm]


def test_rollouts_of_a_step_are_kept_with_their_role(logged: dict[str, Path]) -> None:
    record = read_jsonl(logged["dpo"] / "metrics.jsonl")[4]
    rows = pq.read_table(logged["dpo"] / "rollouts" / "step_000004.parquet").to_pylist()
    assert len(rows) == 16  # 4 prompts x 4 completions
    assert {row["version"] for row in rows} == {3}
    roles = [row["role"] for row in rows]
    assert roles.count("chosen") == roles.count("rejected") == record["examples"] > 0
    assert all(row["reward"] == (1.0 if row["role"] == "chosen" else 0.0) for row in rows if row["role"] != "unused")
    judged = [row["reward"] for row in rows if row["reward"] is not None]
    assert record["reward"] == pytest.approx(sum(judged) / len(judged))
    assert record["rewards/unjudged"] == 16 - len(judged) > 0
    assert record["completions/mean_length"] == pytest.approx(sum(row["tokens"] for row in rows) / 16)


def test_another_configuration_is_refused_naming_its_fields(tmp_path: Path) -> None:
    RunLog(tmp_path, CONFIG).log({"step": 0})
    before = contents(tmp_path)
    asked = CONFIG | {"seed": 1, "sync": {"type": "Never"}}
    with pytest.raises(RunDirectoryError) as raised:
        RunLog(tmp_path, asked)
    message = str(raised.value)
    assert str(tmp_path) in message and "choose another out_dir" in message
    assert "seed: there 0, asked 1" in message and "{'type': 'Never'}" in message and "top_p" not in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize("asked", [{"seed": 0}, {**CONFIG, "new": 1}])
def test_a_missing_or_an_additional_field_is_another_configuration(tmp_path: Path, asked: dict[str, Any]) -> None:
    RunLog(tmp_path, CONFIG)
    with pytest.raises(RunDirectoryError, match=r"sync|new"):
        RunLog(tmp_path, asked)


def test_the_same_configuration_goes_on(tmp_path: Path) -> None:
    RunLog(tmp_path, CONFIG).log({"step": 0})
    RunLog(tmp_path, {**CONFIG, "sampling": {"top_p": 1}}).log({"step": 1})
    assert RunLog(tmp_path, CONFIG).metrics() == [{"step": 0}, {"step": 1}]


def test_the_environment_of_the_start_is_not_overwritten(tmp_path: Path) -> None:
    RunLog(tmp_path, CONFIG)
    (tmp_path / "env.json").write_text('{"python": "of the first start"}')
    RunLog(tmp_path, CONFIG)
    assert "of the first start" in (tmp_path / "env.json").read_text()


@pytest.mark.parametrize("name", ["thesis.docx", "metrics.jsonl", "sub/file"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"is not empty and holds no run .*choose a new or empty out_dir"):
        RunLog(tmp_path, CONFIG)
    assert contents(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [name.split("/")[0]]


def test_a_run_killed_while_it_wrote_its_configuration_can_start_again(tmp_path: Path) -> None:
    (tmp_path / "config.partial").write_text('{"se')
    RunLog(tmp_path, CONFIG).log({"step": 0})
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"ste')
    assert read_jsonl(path) == [{"step": 0}, {"step": 1}]


def test_a_torn_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
    with pytest.raises(json.JSONDecodeError):
        read_jsonl(path)


def test_a_file_that_is_not_there_has_no_records(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "receipts.jsonl"])
@pytest.mark.parametrize("torn", ['{"step": 1, "ev', '{"step": 1}', '{"event": "\\u00', ""])
def test_what_is_logged_after_a_torn_line_can_be_read(tmp_path: Path, name: str, torn: str) -> None:
    RunLog(tmp_path, CONFIG)
    (tmp_path / name).write_text('{"step": 0}\n' + torn)
    log = RunLog(tmp_path, CONFIG)
    log.rewind(5)
    {"metrics.jsonl": log.log, "events.jsonl": lambda r: log.event("x", **r), "receipts.jsonl": log.receipt}[name](
        {"step": 1}
    )
    assert [record["step"] for record in read_jsonl(tmp_path / name)] == [0, 1]


def test_rewind_cuts_both_logs_and_keeps_what_it_cuts(tmp_path: Path) -> None:
    log = RunLog(tmp_path, CONFIG)
    for step in range(5):
        log.log({"step": step, "loss": step / 2})
    for step in (0, 2, 4):
        log.receipt({"step": step})
    log.event("start", step=0)
    log.rewind(3)
    assert [r["step"] for r in log.metrics()] == [0, 1, 2]
    assert [r["step"] for r in read_jsonl(tmp_path / "receipts.jsonl")] == [0, 2]
    assert [r["step"] for r in read_jsonl(tmp_path / "discarded" / "metrics.jsonl")] == [3, 4]
    assert [r["step"] for r in read_jsonl(tmp_path / "discarded" / "receipts.jsonl")] == [4]
    assert len(read_jsonl(tmp_path / "events.jsonl")) == 1
    log.log({"step": 3, "loss": 9.0})
    log.rewind(2)
    assert [r["step"] for r in read_jsonl(tmp_path / "discarded" / "metrics.jsonl")] == [3, 4, 2, 3]


def test_rewinding_to_where_one_stands_changes_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path, CONFIG)
    log.log({"step": 0})
    before = contents(tmp_path)
    log.rewind(1)
    log.rewind(7)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_say_is_refused_and_the_log_stays_readable(tmp_path: Path, value: float) -> None:
    log = RunLog(tmp_path, CONFIG)
    log.log({"step": 0})
    with pytest.raises(ValueError, match="JSON"):
        log.log({"step": 1, "loss": value})
    assert log.metrics() == [{"step": 0}]


def test_status_is_replaced_whole(tmp_path: Path) -> None:
    log = RunLog(tmp_path, CONFIG)
    for step, state in enumerate(["running", "interrupted", "running", "finished"]):
        log.status(state, step)
        found = json.loads((tmp_path / "status.json").read_text())
        assert (found["state"], found["step"]) == (state, step)
    assert not list(tmp_path.glob("*.partial"))


@dataclass(frozen=True)
class Value:
    number: float = 0.5
    function: Callable[..., Any] = centered


def test_a_value_is_described_by_its_type_and_fields() -> None:
    assert describe(Value()) == {"type": "Value", "number": 0.5, "function": "centered"}
    assert describe(Every(3)) == {"type": "Every", "interval": 3}
    assert describe(Never()) == {"type": "Never"}


def test_two_functions_that_differ_in_a_constant_are_two_configurations() -> None:
    described = [describe(Value(function=partial(standardized, eps=eps))) for eps in (1e-6, 1e-4)]
    assert described[0] != described[1]
    assert json.loads(json.dumps(described)) == described


def test_every_objective_and_task_of_the_kit_can_be_described() -> None:
    from kit.tasks import Arithmetic

    for value in (DPO(), GRPO(), Arithmetic(), TinyTask()):
        assert json.loads(json.dumps(describe(value)))["type"] == type(value).__name__


def test_laps_of_the_clock_follow_each_other() -> None:
    clock = Clock()
    first, second = clock.lap("a"), clock.lap("b")
    assert clock.laps == first | second
    assert list(clock.laps) == ["time/a", "time/b"] and min(clock.laps.values()) >= 0


def test_run_logs_what_its_configuration_says(start: Callable[..., Run], tmp_path: Path) -> None:
    start(tmp_path, seed=3, objective=GRPO(kl_coef=0.5), sync=Every(7))
    found = json.loads((tmp_path / "config.json").read_text())
    assert (found["seed"], found["group_size"], found["sampling"]["max_completion_length"]) == (3, 4, 5)
    assert (found["objective"]["type"], found["objective"]["kl_coef"]) == ("GRPO", 0.5)
    assert (found["sync"], found["ref_sync"]) == ({"type": "Every", "interval": 7}, {"type": "Never"})
    assert len(found["model_digest"]) == 16
