"""What is kept of a run is enough for its figures, holds no weights, and says nothing of the machine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kit.plots import Curve
from kit.recorded import keep, main
from kit.run import Run
from kit.runlog import RunDirectoryError
from kit.sync import Never
from tests.conftest import untimed


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_recorded_run_draws_what_the_run_draws(start: Callable[..., Run], tmp_path: Path) -> None:
    start(tmp_path / "runs" / "deep" / "a", max_steps=4).finish()
    main([str(tmp_path / "runs"), str(tmp_path / "kept"), "--completions", "rollouts", "evaluations"])
    kept = tmp_path / "kept" / "deep" / "a"
    assert files(kept) == [
        "config.json", "evaluations/tiny_step_000000.parquet", "evaluations/tiny_step_000004.parquet", "events.jsonl",
        "metrics.jsonl", "receipts.jsonl", "rollouts/step_000003.parquet",
    ]  # fmt: skip
    assert (kept / "metrics.jsonl").read_text().splitlines() == untimed(tmp_path / "runs" / "deep" / "a")
    curves = [Curve.read("dpo", 1, [folder]) for folder in (kept, tmp_path / "runs" / "deep" / "a")]
    assert curves[0].points("eval/accuracy") == curves[1].points("eval/accuracy")


def test_completions_are_kept_on_demand(start: Callable[..., Run], tmp_path: Path) -> None:
    start(tmp_path / "offline", max_steps=2, sync=Never()).finish()
    keep(tmp_path / "offline", tmp_path / "kept offline")
    assert files(tmp_path / "kept offline") == ["config.json", "events.jsonl", "metrics.jsonl"]  # it never synced
    start(tmp_path / "run", max_steps=2).finish()
    keep(tmp_path / "run", tmp_path / "kept")
    keep(tmp_path / "run", tmp_path / "kept")  # again: nothing is in the way
    assert files(tmp_path / "kept") == ["config.json", "events.jsonl", "metrics.jsonl", "receipts.jsonl"]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="expected a run directory"):
        keep(tmp_path, tmp_path / "kept")
    with pytest.raises(SystemExit, match="came none"):
        main([str(tmp_path), str(tmp_path / "kept")])
    assert not (tmp_path / "kept").exists()
