"""Runs that use a batch again, sync on drift, drop what is too old, or let the reference follow the sampler."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.checkpoint import list_checkpoints
from kit.importance import DecoupledPPO
from kit.models.weights import digest, weights_of
from kit.objectives import DPO, GRPO, GroupDPO
from kit.run import Run
from kit.runlog import read_jsonl
from kit.sync import Every, Never, OnDrift, Schedule, WarmUp, WithSampler
from tests.conftest import TinyTask, first_token_is_even, tiny_run, untimed

Start = Callable[..., Run]
# All that is new at once: three passes over each batch, a sync on drift, a reference that is a moving average.
EVERYTHING: dict[str, Any] = {
    "objective": GRPO(DecoupledPPO(), kl_coef=0.1), "sync": OnDrift(max_m2=0.02, max_interval=6), "ref_sync": Every(1),
    "ref_mixup_alpha": 0.3, "reuse_epochs": 3, "drift_prompts": 2,
}  # fmt: skip


def records(out_dir: Path) -> list[dict[str, Any]]:
    """Of the optimizer steps, without the evaluation at the end."""
    return [record for record in read_jsonl(out_dir / "metrics.jsonl") if "loss" in record]


def column(out_dir: Path, name: str) -> list[Any]:
    return [record[name] for record in records(out_dir)]


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture(scope="module")
def straight(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an uninterrupted run of everything."""
    folder = tmp_path_factory.mktemp("straight")
    tiny_run(tiny_folder, folder, **EVERYTHING).finish()
    return folder


@pytest.mark.parametrize(
    ("sync", "staleness"),
    [
        (Every(1), [0, 1, 2, 0, 1, 2]),
        (Every(4), [0, 1, 2, 3, 4, 5]),  # due at step 4, in the middle of a batch: asked again at step 6
        (Never(), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_staleness_grows_within_a_batch(start: Start, tmp_path: Path, sync: Schedule, staleness: list[int]) -> None:
    start(tmp_path, sync=sync, reuse_epochs=3, max_steps=6, eval_steps=99).finish()
    assert column(tmp_path, "sync/staleness") == staleness
    assert column(tmp_path, "reuse_epoch") == [0, 1, 2, 0, 1, 2]
    m2 = column(tmp_path, "offpolicy/m2")
    assert m2[0] == pytest.approx(0, abs=1e-8) and m2[2] > m2[1] > 1e-6  # what is stale is off-policy


def test_a_batch_that_is_used_again_is_the_same_batch(start: Start, tmp_path: Path) -> None:
    drawn: list[int] = []

    def counted(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        drawn.append(len(completion_ids))
        return first_token_is_even(completion_ids)

    start(
        tmp_path, task=TinyTask(reward=counted), objective=GRPO(), reuse_epochs=3, max_steps=6, eval_steps=99
    ).finish()
    assert drawn.count(16) == 2  # four prompts, four completions each; the rest are evaluations, of six and of twelve
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == [
        "step_000000.parquet",
        "step_000003.parquet",
    ]
    tokens = column(tmp_path, "num_tokens")
    assert [count > 0 for count in tokens] == [True, False, False, True, False, False]
    assert [tokens[step] for step in (1, 2, 4, 5)] == [0] * 4
    for name in ("reward", "groups/used", "examples", "sampler/entropy", "sync/version"):
        values = column(tmp_path, name)
        assert values[0] == values[1] == values[2] and values[3] == values[4] == values[5]
    losses = column(tmp_path, "offpolicy/ratio_max")
    assert len(set(losses)) == 6  # yet each is a step of its own


def test_batches_follow_each_other_in_the_same_prompts_as_without_reuse(start: Start, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    start(tmp_path / "again", reuse_epochs=2, max_steps=4, save_steps=4, eval_steps=99).finish()
    start(tmp_path / "once", max_steps=2, eval_steps=99).finish()
    for batch in (0, 1):
        again, once = (
            pq.read_table(tmp_path / name / "rollouts" / f"step_{step:06d}.parquet")["prompt_id"].to_pylist()
            for name, step in (("again", 2 * batch), ("once", batch))
        )
        assert again == once


def test_one_pass_is_the_default(start: Start, tmp_path: Path) -> None:
    start(tmp_path / "default", max_steps=3).finish()
    start(tmp_path / "one", max_steps=3, reuse_epochs=1, max_age=99).finish()
    assert untimed(tmp_path / "default") == untimed(tmp_path / "one")
    assert column(tmp_path / "one", "reuse_epoch") == column(tmp_path / "one", "examples/too_old") == [0, 0, 0]


@pytest.mark.parametrize("name", ["max_steps", "save_steps"])
def test_a_checkpoint_in_the_middle_of_a_batch_is_refused(start: Start, tmp_path: Path, name: str) -> None:
    sizes = {"max_steps": 12, "save_steps": 3} | {name: 10}
    with pytest.raises(ValueError, match=rf"RunConfig\.{name} must be a multiple of reuse_epochs, got 10"):
        start(tmp_path / "run", reuse_epochs=3, **sizes)
    assert not (tmp_path / "run").exists()


def test_leaving_the_loop_in_the_middle_of_a_batch_pauses_there(start: Start, straight: Path, tmp_path: Path) -> None:
    run = start(tmp_path, **EVERYTHING)
    assert [record["step"] for record in run.steps(5)] == [0, 1, 2, 3, 4]
    assert run.step == 5
    run.finish()
    assert untimed(tmp_path) == untimed(straight)


@pytest.mark.parametrize("steps", [4, 8, 9])
def test_a_run_left_behind_resumes_to_the_metrics_of_an_uninterrupted_one(
    start: Start, straight: Path, tmp_path: Path, steps: int
) -> None:
    list(start(tmp_path, **EVERYTHING).steps(steps))  # checkpoints after 3, 6 and 9 steps
    run = start(tmp_path, **EVERYTHING)
    assert run.step == steps // 3 * 3
    assert (run.drift.kl, run.drift.m2) == tuple(
        column(straight, name)[run.step - 1] for name in ("sync/drift", "sync/drift_m2")
    )  # pyright: ignore[reportOptionalMemberAccess]
    run.finish()
    assert untimed(tmp_path) == untimed(straight)
    receipts = [read_jsonl(path / "receipts.jsonl") for path in (tmp_path, straight)]
    assert [{**r, "seconds": 0} for r in receipts[0]] == [{**r, "seconds": 0} for r in receipts[1]] != []


def test_ctrl_c_in_the_middle_of_a_batch_ends_with_that_batch(start: Start, straight: Path, tmp_path: Path) -> None:
    def press_ctrl_c(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        if run.step == 3 and len(completion_ids) == 16:  # while the second batch is scored
            os.kill(os.getpid(), signal.SIGINT)
        return first_token_is_even(completion_ids)

    changes = EVERYTHING | {"task": TinyTask(reward=press_ctrl_c), "save_steps": 12}
    run = start(tmp_path, **changes)
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    assert run.step == 6 and len(untimed(tmp_path)) == 6
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step_000006"]
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"
    run = start(tmp_path, **changes)
    assert run.step == 6
    run.finish()
    renamed = [line.replace("press_ctrl_c", "first_token_is_even") for line in untimed(tmp_path)]
    assert renamed == untimed(straight)


def test_drift_is_zero_after_a_sync_until_the_policy_moves(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, sync=OnDrift(0.001, max_interval=2), max_steps=6, eval_steps=99)
    for _ in range(3):
        next(run.steps(1))
        assert run.drift is not None and run.drift.m2 > 1e-6  # after an update
        run.sampler.sync(run.policy, run.step, step=run.step)
        groups = run.sampler.generate(
            run.training.workloads[0].prompts[:2], 4, seed=(5, run.step), sampling=run.config.sampling
        )
        assert run.training.trainer.drift(groups) == pytest.approx((0.0, 0.0), abs=1e-8)


def test_a_sync_comes_with_the_step_after_the_drift_has_passed_its_bound(start: Start, tmp_path: Path) -> None:
    bound = 0.5
    start(
        tmp_path, objective=GRPO(), sync=OnDrift(max_m2=bound), max_steps=12, eval_steps=99, learning_rate=3e-3
    ).finish()
    drift, staleness = column(tmp_path, "sync/drift_m2"), column(tmp_path, "sync/staleness")
    is_synced = [lag == 0 for lag in staleness[1:]]
    assert is_synced == [value > bound for value in drift[:-1]]
    assert any(is_synced) and not all(is_synced)
    assert [receipt["step"] for receipt in read_jsonl(tmp_path / "receipts.jsonl")] == [
        step + 1 for step, synced in enumerate(is_synced) if synced
    ]


def test_a_drift_schedule_that_is_never_passed_syncs_at_its_longest_interval(start: Start, tmp_path: Path) -> None:
    start(tmp_path, sync=OnDrift(max_kl=1e9, max_interval=3), max_steps=7, eval_steps=99).finish()
    assert column(tmp_path, "sync/staleness") == [0, 1, 2, 0, 1, 2, 0]


def test_only_a_schedule_that_asks_for_it_pays_for_the_drift(start: Start, tmp_path: Path) -> None:
    start(tmp_path, sync=Every(2), max_steps=2, eval_steps=99).finish()
    assert not any("sync/drift" in record for record in records(tmp_path))


def test_drift_is_measured_where_nothing_trained(start: Start, tmp_path: Path) -> None:
    def zero(completions: list[Any], **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    start(tmp_path, task=TinyTask(reward=zero), sync=OnDrift(0.1), max_steps=3, eval_steps=99).finish()
    assert column(tmp_path, "examples") == [0, 0, 0]
    assert column(tmp_path, "sync/drift") == pytest.approx([0.0] * 3, abs=1e-8)


@pytest.mark.parametrize("objective", [DPO(), GroupDPO()])
def test_a_reference_that_is_the_sampler_that_is_the_policy_leaves_half_the_weight(
    start: Start, tmp_path: Path, objective: DPO
) -> None:
    start(tmp_path, objective=objective, sync=Every(1), ref_sync=WithSampler(), max_steps=5, eval_steps=99).finish()
    assert column(tmp_path, "sync/ref_version") == column(tmp_path, "sync/version") == [0, 1, 2, 3, 4]
    assert column(tmp_path, "rewards/margins") == [0.0] * 5
    assert column(tmp_path, "pairs/weight") == [0.5] * 5
    for record in records(tmp_path):  # log 2 for each group with a pair, over all four prompts
        assert record["loss"] == pytest.approx(math.log(2) * record["groups/used"] / 4, rel=1e-6)
        assert record["grad_norm"] > 0


def test_a_reference_with_the_sampler_follows_it_at_every_schedule(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, sync=WarmUp(1, 3, 4), ref_sync=WithSampler(), max_steps=8, eval_steps=99)
    assert run.reference is not None
    for _ in run.steps(8):
        assert run.reference.version == run.sampler.version
        assert digest(run.reference.weights.tensors()) == digest(run.sampler.weights.tensors())
    # staleness 0 1 0 1 2 0 1 2, as in test_sync
    assert column(tmp_path, "sync/ref_version") == [0, 0, 2, 2, 2, 5, 5, 5]


def test_a_mixed_reference_moves_a_share_of_the_way_each_time(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, ref_sync=Every(1), ref_mixup_alpha=0.25, max_steps=3, eval_steps=99)
    assert run.reference is not None
    expected = weights(run.reference.weights.model).double()
    next(run.steps(1))  # nothing to follow before step 0
    assert torch.equal(weights(run.reference.weights.model).double(), expected)
    for _ in range(2):
        expected = 0.25 * weights(run.policy).double() + 0.75 * expected
        next(run.steps(1))  # the reference moves before the update
        torch.testing.assert_close(weights(run.reference.weights.model).double(), expected, rtol=1e-6, atol=1e-7)


def test_later_passes_over_what_is_too_old_are_counted_and_left_out(start: Start, tmp_path: Path) -> None:
    run = start(
        tmp_path, objective=GRPO(), sync=Every(4), reuse_epochs=3, max_age=3, max_steps=9, eval_steps=99, save_steps=9
    )
    moved = []
    for _ in range(9):
        before = digest(weights_of(run.policy))
        next(run.steps(1))
        moved.append(digest(weights_of(run.policy)) != before)
    assert column(tmp_path, "sync/staleness") == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert moved == [True, True, True, True, False, False, True, True, True]
    for record, has_moved in zip(records(tmp_path), moved, strict=True):
        assert record["examples/too_old"] == (0 if has_moved else record["examples"])
        assert (record["grad_norm"] > 0) == has_moved and record["examples"] > 0


@pytest.mark.parametrize(
    ("changes", "largest"),
    [
        ({"sync": Every(4)}, 3),
        ({"sync": WarmUp(2, 5, 4)}, 4),
        ({"sync": OnDrift(0.1, max_interval=5)}, 4),
        ({"sync": OnDrift(0.1)}, 11),  # a dropped batch moves nothing, so the drift would never pass its bound
        ({"sync": Never()}, 11),  # of 12 steps
        ({"sync": Every(99)}, 11),
        ({"sync": Every(4), "reuse_epochs": 3}, 3),  # a batch is generated at a staleness of 3 at most
    ],
)
def test_an_age_that_would_drop_whole_batches_is_refused_before_anything_is_made(
    start: Start, tmp_path: Path, changes: dict[str, Any], largest: int
) -> None:
    with pytest.raises(ValueError, match=rf"max_age >= {largest}, the largest staleness .*came {largest - 1}"):
        start(tmp_path / "run", max_age=largest - 1, **changes)
    assert not (tmp_path / "run").exists()
    start(tmp_path / "run", max_age=largest, **changes)


def test_with_the_largest_staleness_as_age_nothing_is_dropped(start: Start, tmp_path: Path) -> None:
    start(tmp_path, sync=Every(4), max_age=5, reuse_epochs=3, eval_steps=99, max_steps=9).finish()
    assert column(tmp_path, "sync/staleness") == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert column(tmp_path, "examples/too_old") == [0] * 9
