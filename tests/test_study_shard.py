"""Parts of a study: every run in exactly one of them; and the array of jobs that the documentation shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kit.cli import main
from kit.study.file import read_study
from kit.study.lock import locked
from kit.study.shard import shard_of
from tests.counting_study import starts, write_study

ROOT = Path(__file__).parents[1]
SIX = "notebook: {notebook}\narms:\n  low: {rate: 1.0}\n  high: {rate: 2.0}\nseeds: [0, 1, 2]\n"
CHAIN = (
    "notebook: {notebook}\narms:\n  first: {save_policy: true}\n  other: {rate: 2.0}\n  second: {after: first, "
    "save_policy: true}\n  third: {after: second}\nseeds: [0, 1]\n"
)


@pytest.mark.parametrize("count", [1, 2, 4, 6, 9])
def test_every_run_is_in_one_shard(count: int, tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path / "study", SIX))
    parts = [list(shard_of(study, f"{number}/{count}").runs) for number in range(1, count + 1)]
    assert sorted(name for part in parts for name in part) == sorted(study.runs)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_runs_are_dealt_out_in_the_order_of_the_file(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path / "study", SIX))
    assert list(shard_of(study, "2/4").runs) == ["high_seed0", "high_seed2"]


def test_a_chain_of_arms_stays_together(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path / "study", CHAIN))
    assert list(shard_of(study, "1/4").runs) == ["first_seed0", "second_seed0", "third_seed0"]
    assert list(shard_of(study, "4/4").runs) == ["other_seed1"]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "-1/2", "1/2/3", "a/b", "", "1.0/2"])
def test_a_malformed_shard_says_what_was_expected(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_study(tmp_path / "study", SIX)
    assert main(["study", "run", str(folder), f"--shard={text}"]) == 2
    assert capsys.readouterr().err == (f"error: expected --shard I/N with 1 <= I <= N, such as 2/8, came {text!r}\n")
    assert not (folder / "runs").exists()


def test_a_shard_can_be_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where an array has more jobs than the study has runs."""
    folder = write_study(tmp_path / "study", SIX)
    assert main(["study", "run", str(folder), "--shard", "7/7"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 of the 0 runs of shard 7/7 are finished")
    assert main(["study", "run", str(folder), "--shard", "7/7", "--ray", "127.0.0.1:1"]) == 2
    assert "expected a Ray cluster's head at 127.0.0.1:1" in capsys.readouterr().err  # not: workers >= 1


def test_shards_do_not_wait_for_each_other(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path / "study", SIX))
    (study.folder / "runs").mkdir()
    with locked(study.lock), locked(shard_of(study, "1/2").lock), locked(shard_of(study, "2/2").lock):
        pass  # three locks


def test_the_documented_array_makes_the_whole_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its script as Slurm executes it, once a part, without Slurm; then what collects the results."""
    folder = write_study(tmp_path / "study", SIX)
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", (ROOT / "docs" / "slurm.md").read_text(), re.DOTALL)
    script = script.replace(".venv/bin/kit", f"{sys.executable} -m kit.cli")
    assert script.count("#SBATCH") == 6
    for number in (1, 2):
        array = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "2", "STUDY": str(folder)}
        made = subprocess.run(["bash", "-c", script], env=os.environ | array, cwd=ROOT, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        assert made.stdout.splitlines()[-1] == (
            f"3 of the 3 runs of shard {number}/2 are finished; when all shards are: "
            f"kit study run {folder / 'study.yaml'}"
        )
        assert not (folder / "results.csv").exists()
    assert main(["study", "run", str(folder)]) == 0
    assert "6 of 6 runs were finished before" in capsys.readouterr().out
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + 6 * 3
    assert all(starts(folder, name) == [0] for name in read_study(folder).runs)
