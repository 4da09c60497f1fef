"""The run loop: reproducible to the bit, stale by the schedule, and it refuses what cannot work before it starts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.checkpoint import CheckpointError, list_checkpoints
from kit.config import Sampling
from kit.learner import NonFiniteError
from kit.models.weights import digest, weights_of
from kit.objectives import DPO, GRPO
from kit.run import Run
from kit.runlog import RunDirectoryError, read_jsonl
from kit.samplers import SyncError
from kit.sync import Every, Never, OnDrift, Schedule, WithSampler, every
from tests.conftest import TinyTask, contents, happened, tiny_run, untimed

Start = Callable[..., Run]
ARMS: dict[str, dict[str, Any]] = {
    "online dpo": {"sync": Every(1)},
    "semi-online dpo": {"sync": Every(3), "ref_sync": Every(4)},
    "offline dpo": {"sync": Never(), "ref_sync": Every(4)},
    "semi-online grpo": {"objective": GRPO(kl_coef=0.1), "sync": Every(5), "ref_sync": Every(5)},
}


def column(out_dir: Path, name: str) -> list[Any]:
    return [record[name] for record in read_jsonl(out_dir / "metrics.jsonl") if name in record]


@pytest.fixture(scope="module")
def straight(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of an uninterrupted run of an arm."""
    root = tmp_path_factory.mktemp("straight")

    def made(arm: str) -> Path:
        if not (root / arm).exists():
            tiny_run(tiny_folder, root / arm, **ARMS[arm]).finish()
        return root / arm

    return made


@pytest.fixture(scope="module")
def unfinished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with checkpoints after 3 and 6 steps, left after 8."""
    folder = tmp_path_factory.mktemp("unfinished")
    list(tiny_run(tiny_folder, folder, **ARMS["semi-online dpo"]).steps(8))
    return folder


@pytest.mark.parametrize("arm", ["semi-online dpo", "semi-online grpo"])
def test_the_same_seed_gives_the_same_metrics_to_the_byte(
    start: Start, straight: Callable[[str], Path], tmp_path: Path, arm: str
) -> None:
    start(tmp_path, **ARMS[arm]).finish()
    assert untimed(tmp_path) == untimed(straight(arm))
    assert len(untimed(tmp_path)) == 13  # 12 steps and the evaluation at the end


def test_another_seed_gives_other_metrics(start: Start, tmp_path: Path) -> None:
    for seed in (0, 1):
        start(tmp_path / str(seed), seed=seed, max_steps=1).finish()
    first, second = (untimed(tmp_path / str(seed)) for seed in (0, 1))
    assert first[0] != second[0] and first[1] != second[1]


def test_arms_share_their_first_step(start: Start, tmp_path: Path) -> None:
    for arm in ("online dpo", "semi-online dpo", "offline dpo"):
        start(tmp_path / arm, max_steps=2, **ARMS[arm]).finish()
    assert len({untimed(tmp_path / arm)[0] for arm in ("online dpo", "semi-online dpo", "offline dpo")}) == 1


@pytest.mark.parametrize(
    ("sync", "staleness"),
    [
        (Every(1), [0, 0, 0, 0, 0, 0, 0, 0]),
        (Every(3), [0, 1, 2, 0, 1, 2, 0, 1]),
        (Every(5), [0, 1, 2, 3, 4, 0, 1, 2]),
        (Never(), [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_staleness_by_step(start: Start, tmp_path: Path, sync: Schedule, staleness: list[int]) -> None:
    start(tmp_path, sync=sync, max_steps=8, eval_steps=99).finish()
    assert column(tmp_path, "sync/staleness") == staleness
    assert column(tmp_path, "sync/version") == [step - lag for step, lag in enumerate(staleness)]
    synced = [step for step, lag in enumerate(staleness) if step and not lag]
    assert [receipt["step"] for receipt in read_jsonl(tmp_path / "receipts.jsonl")] == synced


@pytest.mark.parametrize(("sync", "moves"), [(Every(1), [True, True, True]), (Every(2), [False, True, False]),
                                             (Never(), [False, False, False])])  # fmt: skip
def test_only_a_sync_changes_the_sampler(start: Start, tmp_path: Path, sync: Schedule, moves: list[bool]) -> None:
    run = start(tmp_path, sync=sync, eval_steps=99)
    next(run.steps(1))
    for is_moved in moves:
        sampler, policy = digest(run.sampler.weights.tensors()), digest(weights_of(run.policy))
        next(run.steps(1))
        assert (digest(run.sampler.weights.tensors()) != sampler) == is_moved
        assert not is_moved or digest(run.sampler.weights.tensors()) == policy
        assert digest(weights_of(run.policy)) != policy


@pytest.mark.parametrize("sync", [Every(1), Every(2), Never()])
def test_the_reference_follows_its_own_schedule(start: Start, tmp_path: Path, sync: Schedule) -> None:
    start(tmp_path, sync=sync, ref_sync=Every(3), max_steps=7, eval_steps=99).finish()
    assert column(tmp_path, "sync/ref_version") == [0, 0, 0, 3, 3, 3, 6]


def test_the_reference_stays_the_seed_policy_unless_told_otherwise(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, max_steps=3, eval_steps=99)
    assert run.reference is not None
    before = digest(run.reference.weights.tensors())
    run.finish()
    assert digest(run.reference.weights.tensors()) == before
    assert set(column(tmp_path, "sync/ref_version")) == {0}


def test_grpo_without_a_kl_term_has_no_reference(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, objective=GRPO(), max_steps=1)
    run.finish()
    assert run.reference is None and column(tmp_path, "sync/ref_version") == []


@pytest.mark.parametrize("objective", [GRPO(), GRPO(kl_coef=0.1)])
def test_right_after_a_sync_the_ratio_is_one_and_later_it_is_not(start: Start, tmp_path: Path, objective: GRPO) -> None:
    start(tmp_path, objective=objective, sync=Every(3), max_steps=5, eval_steps=99).finish()
    for lag, low, high in zip(
        *(column(tmp_path, name) for name in ("sync/staleness", "offpolicy/ratio_min", "offpolicy/ratio_max")),
        strict=True,
    ):
        assert (low == pytest.approx(1, abs=1e-4) and high == pytest.approx(1, abs=1e-4)) == (lag == 0)


@pytest.mark.parametrize("sampling", [Sampling(5, temperature=0.7), Sampling(5, top_p=0.8)])
def test_a_ratio_of_one_holds_for_every_way_of_sampling(start: Start, tmp_path: Path, sampling: Sampling) -> None:
    try:
        run = start(tmp_path, objective=GRPO(), sampling=sampling, max_steps=2, eval_steps=99)
    except ValueError as refusal:
        assert "top_p" in str(refusal)  # to refuse it is right as well
        return
    run.finish()
    assert column(tmp_path, "offpolicy/ratio_min") == pytest.approx([1, 1], abs=1e-4)
    assert column(tmp_path, "offpolicy/ratio_max") == pytest.approx([1, 1], abs=1e-4)


def test_training_raises_the_reward(start: Start, tmp_path: Path) -> None:
    start(tmp_path, objective=GRPO(), max_steps=30, eval_steps=99, save_steps=99, prompts_per_step=8).finish()
    rewards = column(tmp_path, "reward")
    assert sum(rewards[:5]) / 5 < 0.75 < 0.9 < sum(rewards[-5:]) / 5


def test_leaving_the_loop_and_going_on_equals_an_uninterrupted_run(
    start: Start, straight: Callable[[str], Path], tmp_path: Path
) -> None:
    run = start(tmp_path, **ARMS["semi-online dpo"])
    for record in run.steps(12):
        if record["step"] == 4:
            break
    assert run.step == 5
    assert [record["step"] for record in run.steps(2)] == [5, 6]
    assert run.finish()["step"] == 12
    assert untimed(tmp_path) == untimed(straight("semi-online dpo"))


def test_steps_yields_what_is_logged_and_stops_at_the_end(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, max_steps=3)
    records = list(run.steps(99))
    assert records == read_jsonl(tmp_path / "metrics.jsonl")[:3]
    assert list(run.steps(1)) == []


@pytest.mark.parametrize("arm", ["semi-online dpo", "offline dpo", "semi-online grpo"])
def test_a_run_left_behind_resumes_to_the_metrics_of_an_uninterrupted_one(
    start: Start, straight: Callable[[str], Path], tmp_path: Path, arm: str
) -> None:
    list(start(tmp_path, **ARMS[arm]).steps(8))  # checkpoints after 3 and 6 steps
    lost = untimed(tmp_path)[6:]
    run = start(tmp_path, **ARMS[arm])
    assert (run.step, len(untimed(tmp_path))) == (6, 6)
    assert untimed(tmp_path / "discarded") == lost
    run.finish()
    assert untimed(tmp_path) == untimed(straight(arm))
    receipts = [read_jsonl(path / "receipts.jsonl") for path in (tmp_path, straight(arm))]
    assert [{**r, "seconds": 0} for r in receipts[0]] == [{**r, "seconds": 0} for r in receipts[1]]
    assert happened(tmp_path)[:2] == ["start", "resume"]


def test_a_run_without_a_checkpoint_starts_over(start: Start, straight: Callable[[str], Path], tmp_path: Path) -> None:
    list(start(tmp_path, **ARMS["semi-online dpo"]).steps(2))
    start(tmp_path, **ARMS["semi-online dpo"]).finish()
    assert untimed(tmp_path) == untimed(straight("semi-online dpo"))


def test_a_run_of_only_equal_rewards_trains_nothing_and_resumes(start: Start, tmp_path: Path) -> None:
    def zero(completions: list[Any], **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    run = start(tmp_path, task=TinyTask(reward=zero), max_steps=4)
    before = digest(weights_of(run.policy))
    list(run.steps(3))
    start(tmp_path, task=TinyTask(reward=zero), max_steps=4).finish()
    assert column(tmp_path, "frac_reward_zero_std") == [1.0] * 4
    assert column(tmp_path, "groups/used") == column(tmp_path, "examples") == [0] * 4
    assert digest(weights_of(run.policy)) == before


def test_a_finished_run_opened_again_does_nothing_and_keeps_its_files(start: Start, tmp_path: Path) -> None:
    last = start(tmp_path, max_steps=4).finish()
    kept = {name: value for name, value in contents(tmp_path).items() if name != "events.jsonl"}
    again = start(tmp_path, max_steps=4)
    assert list(again.steps(5)) == [] and again.finish() == last
    after = contents(tmp_path)
    assert {name: value[0] for name, value in after.items() if name in kept} == {n: v[0] for n, v in kept.items()}
    assert after.keys() == kept.keys() | {"events.jsonl"}
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


def test_checkpoints_come_at_their_interval_and_at_the_end(start: Start, tmp_path: Path) -> None:
    list(start(tmp_path, save_steps=2, max_steps=5).steps(4))
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step_000002", "step_000004"]
    start(tmp_path, save_steps=2, max_steps=5).finish()
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step_000004", "step_000005"]


def test_evaluations_come_at_their_interval_and_at_the_end(start: Start, tmp_path: Path) -> None:
    start(tmp_path, max_steps=7, eval_steps=3).finish()
    found = [r["step"] for r in read_jsonl(tmp_path / "metrics.jsonl") if "eval/accuracy" in r]
    assert found == [0, 3, 6, 7]


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "group of one, GRPO": (
        {"objective": GRPO(), "group_size": 1},
        ValueError,
        "group_size must be at least 2 under GRPO",
    ),
    "group of one, DPO": ({"objective": DPO(), "group_size": 1}, ValueError, "group_size must be at least 2 under DPO"),
    "no model": ({"model_name_or_path": "no/such/model"}, FileNotFoundError, "no/such/model"),
    "long prompt": ({"task": TinyTask(terms=12)}, ValueError, r"'tiny/.*' .*\d+ tokens.*context of 64 tokens"),
    "long completion": ({"sampling": Sampling(60)}, ValueError, "max_completion_length=60"),
    "more prompts than there are": ({"prompts_per_step": 25}, ValueError, "25 distinct prompts, but the split has 24"),
    "more evaluation prompts than there are": ({"eval_prompts": 7}, ValueError, "eval_prompts"),
    "greedy training": ({"sampling": Sampling(5, temperature=0.0)}, ValueError, "temperature"),
    "a reference that waits for its own drift": ({"ref_sync": OnDrift(0.1)}, ValueError, "drift is from the sampler"),
    "a sampler that follows the sampler": ({"sync": WithSampler()}, ValueError, "that is one for the reference"),
    "drift under a cut distribution": ({"sync": OnDrift(0.1), "sampling": Sampling(5, top_p=0.9)}, ValueError, "top_p"),
    "a share above 1": ({"ref_mixup_alpha": 1.5}, ValueError, "ref_mixup_alpha in"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_made(start: Start, tmp_path: Path, case: str) -> None:
    changes, error, message = BAD[case]
    with pytest.raises(error, match=message):
        start(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("interval", [0, -1])
def test_a_sync_interval_below_one_is_refused(interval: int) -> None:
    with pytest.raises(ValueError, match=rf"came {interval}: write None .* for offline, 1 for online"):
        every(interval)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed: there 0, asked 1"), ({"sync": Never()}, "sync: there .*Every.* asked .*Never"),
        ({"objective": DPO(beta=0.2)}, "objective: there .*0.1.* asked .*0.2"), ({"group_size": 5}, "group_size"),
        ({"task": TinyTask(size=20)}, "task"), ({"ref_sync": Every(2)}, "ref_sync"),
        ({"sampling": Sampling(5, temperature=0.5)}, "sampling"),
    ],
)  # fmt: skip
def test_a_directory_of_another_configuration_is_refused_untouched(
    start: Start, unfinished: Path, changes: dict[str, Any], named: str
) -> None:
    before = contents(unfinished)
    with pytest.raises(RunDirectoryError, match=rf"another configuration \({named}.*choose another out_dir"):
        start(unfinished, **(ARMS["semi-online dpo"] | changes))
    assert contents(unfinished) == before


def test_another_model_in_the_same_folder_is_another_configuration(
    start: Start, tiny_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_folder, tmp_path / "model")
    list(start(tmp_path / "run", model_name_or_path=str(tmp_path / "model")).steps(1))
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file({k: v * 1.001 for k, v in weights.items()}, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunDirectoryError, match="model_digest"):
        start(tmp_path / "run", model_name_or_path=str(tmp_path / "model"))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "garbage state"])
def test_a_corrupt_checkpoint_is_refused_and_the_logs_stay(
    start: Start, unfinished: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(unfinished, tmp_path, dirs_exist_ok=True)
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    file = newest / ("state.json" if damage == "garbage state" else "sampler.safetensors")
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        flipped = content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]
        file.write_bytes({"flipped": flipped, "truncated": content[:-9], "garbage state": b"\x80\x81"}[damage])
    (tmp_path / "env.json").write_text('{"python": "of the start"}')
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{newest.name}.*Delete the folder"):
        start(tmp_path, **ARMS["semi-online dpo"])
    assert contents(tmp_path) == before


def test_the_remedy_for_a_corrupt_checkpoint_works(
    start: Start, straight: Callable[[str], Path], unfinished: Path, tmp_path: Path
) -> None:
    shutil.copytree(unfinished, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(list_checkpoints(tmp_path / "checkpoints")[-1])
    run = start(tmp_path, **ARMS["semi-online dpo"])
    assert run.step == 3
    run.finish()
    assert untimed(tmp_path) == untimed(straight("semi-online dpo"))


def test_a_failed_sync_stops_the_run_and_what_was_logged_stays(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path, sync=Every(3), eval_steps=99)
    list(run.steps(2))
    before = untimed(tmp_path)
    monkeypatch.setattr(
        "kit.samplers.transformers.copy_weights", lambda source, target: (0, 0.0)
    )  # an engine that lost it
    with pytest.raises(SyncError, match="before step 3"):
        run.finish()
    assert untimed(tmp_path)[:2] == before and len(untimed(tmp_path)) == 3


def test_not_a_number_stops_the_run_and_what_was_logged_stays(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, sync=Never(), eval_steps=99)
    list(run.steps(2))
    before = contents(tmp_path)
    assert run.reference is not None
    run.reference.weights.model.get_parameter("model.norm.weight")[0] = float("nan")
    with pytest.raises(NonFiniteError, match="at step 2"):
        run.finish()
    assert contents(tmp_path)["metrics.jsonl"] == before["metrics.jsonl"]


def test_the_metrics_of_a_group_say_what_happened(start: Start, tmp_path: Path) -> None:
    start(tmp_path, max_steps=1, prompts_per_step=6).finish()
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "rollouts" / "step_000000.parquet").to_pylist()
    [record] = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if "reward" in r]
    groups = [[row["reward"] for row in rows[start : start + 4]] for start in range(0, 24, 4)]
    assert record["frac_reward_zero_std"] == pytest.approx(sum(len(set(g)) == 1 for g in groups) / 6)
    assert record["groups/used"] == sum(len(set(g)) > 1 for g in groups)
    assert record["num_tokens"] == sum(row["tokens"] for row in rows)
    assert record["completions/clipped_ratio"] == sum(row["finish_reason"] == "length" for row in rows) / 24


def test_another_run_can_start_from_a_saved_policy(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path / "first", max_steps=3)
    before = digest(weights_of(run.policy))
    run.finish()
    run.save_policy(tmp_path / "policy")
    second = start(tmp_path / "second", model_name_or_path=str(tmp_path / "policy"))
    assert digest(weights_of(second.policy)) == digest(weights_of(run.policy)) != before
    assert second.reference is not None and digest(second.reference.weights.tensors()) == digest(weights_of(run.policy))
    assert second.sampler.tokenizer.chat_template == run.sampler.tokenizer.chat_template
