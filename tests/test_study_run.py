"""Carrying out a study, with real kernels: what fails, dies or is interrupted is told, and nothing of it is lost."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest

from kit.study import execute_notebook
from kit.study.execute import Job
from kit.study.local import Subprocesses
from tests.counting_study import starts, write_study

ROOT = Path(__file__).parents[1]
TWO = "notebook: {notebook}\nshared: {steps: 4}\narms:\n  low: {rate: 1.0}\n  high: {rate: 2.0}\nseeds: [0, 1]\n"
SLOW = TWO.replace("steps: 4", "steps: 20, pause: 0.3")


def command(folder: Path, what: str = "run", *more: str) -> list[str]:
    return [sys.executable, "-m", "kit.cli", "study", what, str(folder), *more]


def kit(folder: Path, what: str = "run", *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, what, *more), capture_output=True, text=True, cwd=ROOT, timeout=300)


def wait_for(holds: Callable[[], object], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def lines_of(folder: Path, run: str) -> list[str]:
    path = folder / "runs" / run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def record(folder: Path, run: str) -> dict[str, object]:
    return json.loads((folder / "runs" / f"{run}.json").read_text())


@pytest.fixture
def started() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts a study in the background; what is left of it at the end of the test is ended."""
    processes: list[subprocess.Popen[str]] = []

    def start(folder: Path, *more: str) -> subprocess.Popen[str]:
        processes.append(subprocess.Popen(command(folder, "run", *more), stdout=subprocess.PIPE,
                                          stderr=subprocess.PIPE, text=True, cwd=ROOT))  # fmt: skip
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A study that two workers made."""
    folder = write_study(tmp_path_factory.mktemp("done") / "study", TWO + "resources: {threads: 3}\n")
    return folder, kit(folder, "run", "--workers", "2")


def test_every_run_is_made_and_told(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, process = done
    assert process.returncode == 0, process.stderr
    said = process.stdout.splitlines()
    for name in ("low_seed0", "high_seed0", "low_seed1", "high_seed1"):
        assert said.index(f"{name}: started") < said.index(f"{name}: finished")
        cells = nbformat.read(folder / "runs" / f"{name}.ipynb", as_version=4).cells
        assert cells[-1].outputs[0].text == "counted to 4\n"
    assert said[-1] == f"results of 4 of 4 runs: {folder / 'results.csv'}"


def test_results_are_in_the_order_of_the_file(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    rows = [row.split(",") for row in (done[0] / "results.csv").read_text().splitlines()]
    assert rows[0] == ["arm", "seed", "step", "syncs", "eval/accuracy"]
    assert [row[:3] for row in rows[1:]] == [
        [arm, seed, str(step)] for seed in "01" for arm in ("low", "high") for step in range(4)
    ]
    first = json.loads(lines_of(done[0], "low_seed0")[0])
    assert float(rows[1][4]) == pytest.approx(first["eval/accuracy"], abs=1e-5)


def test_threads_of_a_run_are_those_of_the_file(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert (done[0] / "runs" / "low_seed0" / "starts.txt").read_text().split()[2] == "3"


def test_a_finished_study_has_nothing_to_do(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = done
    before = (folder / "results.csv").read_bytes()
    again = kit(folder)
    assert again.returncode == 0 and "4 of 4 runs were finished before" in again.stdout
    assert starts(folder, "low_seed0") == [0] and (folder / "results.csv").read_bytes() == before


def test_plan_and_status_tell_what_was_measured(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = done
    (folder / "study.yaml").write_text((folder / "study.yaml").read_text().replace("[0, 1]", "[0, 1, 2]"))
    plan = kit(folder, "plan").stdout.splitlines()
    assert plan[1].split()[:2] == ["low_seed0", "finished"] and "measured" in plan[1]
    assert plan[5].startswith("low_seed2") and "not started" in plan[5] and "measured on 2 of this arm" in plan[5]
    assert plan[8].startswith("6 runs, 2 to do: ")
    status = kit(folder, "status").stdout.splitlines()
    assert status[1].split()[:5] == ["low_seed0", "finished", "step", "4", "eval/accuracy"]
    assert status[5].split() == ["low_seed2", "not", "started"]
    (folder / "study.yaml").write_text((folder / "study.yaml").read_text().replace("[0, 1, 2]", "[0, 1]"))


def test_a_changed_file_is_refused_before_anything_starts(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = done
    path = folder / "study.yaml"
    text = path.read_text()
    path.write_text(text.replace("rate: 2.0", "rate: 3.0"))
    for what in ("run", "plan"):
        refused, run = kit(folder, what), folder / "runs" / "high_seed0"
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 2  # one a run
        assert refused.stderr.startswith(
            f"error: {path}: high_seed0 was made with other parameters (rate: 2.0 there, 3.0 in the study): "
            f"restore them, name the arm anew, or remove {run} and {run}.*"
        )
    path.write_text(text)


def test_a_changed_default_of_the_notebook_is_noticed_and_a_new_parameter_is_not(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", TWO.replace("[0, 1]", "[0]").replace("  high: {rate: 2.0}\n", ""))
    assert kit(folder).returncode == 0
    notebook = folder / "counting.ipynb"
    text = notebook.read_text()
    notebook.write_text(text.replace("seed: int = 0", "more: int = 7  # x\\nseed: int = 0"))
    assert kit(folder).returncode == 0
    notebook.write_text(text.replace("pause: float = 0.0", "pause: float = 0.1"))
    refused = kit(folder)
    assert refused.returncode == 2 and "(pause: 0.0 there, 0.1 in the study)" in refused.stderr


def test_what_was_removed_is_made_again(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", TWO.replace("[0, 1]", "[0]").replace("  high: {rate: 2.0}\n", ""))
    assert kit(folder).returncode == 0
    before = (folder / "results.csv").read_bytes()
    for path in (folder / "runs" / "low_seed0").iterdir():
        path.unlink()
    (folder / "runs" / "low_seed0").rmdir()
    assert "removed" in kit(folder, "status").stdout
    assert kit(folder).returncode == 0 and (folder / "results.csv").read_bytes() == before


FAILING = TWO.replace("[0, 1]", "[0]").replace("{rate: 2.0}", "{cause: CAUSE}")


def test_a_failing_cell_is_told_with_its_cause_and_the_others_finish(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", FAILING.replace("CAUSE", "as asked"))
    process = kit(folder)
    assert process.returncode == 1
    notebook = folder / "runs" / "high_seed0.ipynb"
    assert f"failed: high_seed0: ValueError: as asked ({notebook})" in process.stderr.splitlines()
    assert "results of 1 of 2 runs" in process.stdout and "low" in (folder / "results.csv").read_text()
    assert "high" not in (folder / "results.csv").read_text()
    assert any(
        out.get("ename") == "ValueError" for cell in nbformat.read(notebook, 4).cells for out in cell.get("outputs", [])
    )
    status = kit(folder, "status")
    assert status.returncode == 1 and "ValueError: as asked" in status.stdout


def test_where_nothing_is_finished_earlier_results_stay(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", FAILING.replace("  low: {rate: 1.0}\n", "").replace("CAUSE", "x"))
    (folder / "results.csv").write_text("of before")
    assert kit(folder).returncode == 1 and (folder / "results.csv").read_text() == "of before"


def test_a_kernel_that_dies_leaves_its_notebook(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", FAILING.replace("CAUSE", "kill"))
    process = kit(folder)
    assert process.returncode == 1 and "failed: high_seed0: the kernel died" in process.stderr
    cells = nbformat.read(folder / "runs" / "high_seed0.ipynb", as_version=4).cells
    assert [bool(cell.execution_count) for cell in cells[:3]] == [True] * 3 and len(lines_of(folder, "high_seed0")) == 3


AFTER = (
    "notebook: {notebook}\narms:\n  first: {save_policy: true, steps: 4FIRST}\n  second: {after: first}\n"
    "  third: {steps: 2}\nseeds: [0]\n"
)


@pytest.mark.slow
def test_an_arm_starts_when_the_one_before_is_finished(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", AFTER.replace("FIRST", ""))
    process = kit(folder, "run", "--workers", "2")
    assert process.returncode == 0, process.stderr
    said = process.stdout.splitlines()
    assert said.index("first_seed0: finished") < said.index("second_seed0: started")
    assert said.index("third_seed0: started") < said.index("first_seed0: finished")  # no worker waits


def test_an_arm_after_a_failed_one_is_not_started_and_says_so(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", AFTER.replace("FIRST", ", cause: x"))
    process = kit(folder)
    assert process.returncode == 1 and "results of 1 of 3 runs" in process.stdout
    assert "not started: second_seed0 waits for first_seed0, which is not finished" in process.stderr
    assert not (folder / "runs" / "second_seed0.ipynb").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_runs_at_a_steps_end_and_they_go_on_from_there(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]], number: int, status: int
) -> None:
    folder = write_study(tmp_path / "study", SLOW.replace("[0, 1]", "[0]"))
    process = started(folder, "--workers", "2")
    wait_for(lambda: all(len(lines_of(folder, run)) >= 3 for run in ("low_seed0", "high_seed0")))
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status and "interrupted: 2 of 2 runs are not finished" in said
    assert f"go on with: kit study run {folder / 'study.yaml'}" in said
    assert record(folder, "low_seed0")["state"] == "interrupted" and not (folder / "results.csv").exists()
    counts = {run: len(lines_of(folder, run)) for run in ("low_seed0", "high_seed0")}
    assert all(3 <= count < 20 for count in counts.values())
    assert kit(folder, "run", "--workers", "2").returncode == 0
    assert all(starts(folder, run) == [0, count] for run, count in counts.items())


@pytest.mark.slow
def test_runs_of_a_killed_launcher_end_and_are_not_made_twice_at_once(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    folder = write_study(tmp_path / "study", SLOW.replace("[0, 1]", "[0]").replace("  high: {rate: 2.0}\n", ""))
    process = started(folder)
    wait_for(lambda: len(lines_of(folder, "low_seed0")) >= 3)
    process.kill()
    assert kit(folder).returncode == 0  # at once: the first kernel is at work still
    records = [json.loads(line) for line in lines_of(folder, "low_seed0")]
    assert [entry["step"] for entry in records] == list(range(20))
    assert len(starts(folder, "low_seed0")) == 2


def test_a_study_is_executed_by_one_launcher_at_a_time(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    folder = write_study(tmp_path / "study", SLOW.replace("[0, 1]", "[0]"))
    process = started(folder)
    wait_for(lambda: lines_of(folder, "low_seed0"))
    second = kit(folder)
    assert second.returncode == 2 and f"is held by process {process.pid}: wait for it, or end it" in second.stderr


def test_a_notebook_executed_alone_is_interrupted_too(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", SLOW)
    arguments = [str(folder / "counting.ipynb"), str(folder / "out.ipynb"), "-p", "out_dir", str(folder / "out")]
    arguments += ["-p", "steps", "100", "-p", "pause", "0.2"]
    process = subprocess.Popen([sys.executable, "-m", "kit.cli", "execute", *arguments], cwd=ROOT,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    wait_for(lambda: (folder / "out" / "metrics.jsonl").exists())
    process.send_signal(signal.SIGINT)
    assert "interrupted" in process.communicate(timeout=60)[1] and process.returncode == 2
    assert (folder / "out.ipynb").exists()


def test_braces_in_a_path_are_no_format(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "{a}", TWO)
    out = execute_notebook(folder / "counting.ipynb", folder / "{out}.ipynb", {"out_dir": str(folder / "x")})
    assert out.exists()


def job(name: str, folder: Path, gpus: int | None) -> Job:
    """One whose process ends at once, because its notebook is absent; what it was given is in its environment."""
    payload = {"record": str(folder / f"{name}.json")}
    return Job(name, payload, 1, gpus)


def test_gpus_are_handed_out_once(tmp_path: Path) -> None:
    executor = Subprocesses(4, gpus=("0", "1", "GPU-7"))
    assert executor.refusal(job("a", tmp_path, 4)) == ("asks for 4 GPUs, and 3 can be seen here: lower resources.gpus")
    assert executor.refusal(job("a", tmp_path, 3)) is None
    first = executor.start(job("a", tmp_path, 2))
    assert first is not None and first.gpus == ("0", "1")
    second, third = executor.start(job("b", tmp_path, 1)), executor.start(job("c", tmp_path, None))
    assert second is not None and second.gpus == ("GPU-7",) and third is not None and third.gpus == ()
    assert executor.start(job("d", tmp_path, 1)) is None or first.ended() is not None
    wait_for(lambda: all(process.ended() for process in (first, second, third)))
    assert str(first.ended()) == (
        f"its process ended with status 1 and \"KeyError: 'asked'\": see {tmp_path / 'a.log'}"
    )


@pytest.mark.parametrize(("gpus", "visible"), [(None, "5,6"), (0, ""), (1, "5")])
def test_a_run_sees_the_gpus_that_it_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int | None, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    text = TWO.replace("[0, 1]", "[0]").replace("  high: {rate: 2.0}\n", "")
    folder = write_study(tmp_path / "study", text + (f"resources: {{gpus: {gpus}}}\n" if gpus is not None else ""))
    assert kit(folder).returncode == 0
    assert (folder / "runs" / "low_seed0" / "starts.txt").read_text().split(" ")[1] == visible


def test_more_gpus_than_there_are_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    refused = kit(write_study(tmp_path / "study", TWO + "resources: {gpus: 2}\n"))
    assert refused.returncode == 2
    assert "low_seed0 asks for 2 GPUs, and 1 can be seen here: lower resources.gpus" in refused.stderr


def test_no_workers_is_refused(tmp_path: Path) -> None:
    refused = kit(write_study(tmp_path / "study", TWO), "run", "--workers", "0")
    assert refused.returncode == 2 and "expected workers >= 1, came 0" in refused.stderr
