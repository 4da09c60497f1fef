"""Metrics in the tools themselves: what was sent is read back from the files that they wrote."""

import json
import logging
import math
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from kit.runlog import read_jsonl
from kit.trackers import TRACKERS, Connection, Tracker, tracker
from tests.conftest import untimed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the tools' imports
ROOT = Path(__file__).parents[1]
Curves = dict[str, list[tuple[int, float]]]  # (step, value) of each metric


def tensorboard_files(folder: Path) -> Curves:
    """With TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "project" / "a run"))
    events.Reload()
    return {name: [(s.step, s.value) for s in events.Scalars(name)] for name in events.Tags()["scalars"]}


def wandb_files(folder: Path) -> Curves:
    """What wandb keeps until it is online: LevelDB's log format after seven bytes, of its own protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content, at, whole = path.read_bytes(), 7, b""
    found: Curves = {}
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # the rest of a block that no header fits into
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)  # checksum, bytes, 1 whole, 2 first, 3 middle, 4 last
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record, whole = Record.FromString(whole), b""
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for name in row.keys() - {"step"}:
                if not name.startswith("_"):
                    found.setdefault(name, []).append((row["step"], row[name]))
    return found


def trackio_files(folder: Path) -> Curves:
    """With SQLite."""
    (path,) = (folder / "trackio").glob("*.db")
    found: Curves = {}
    with sqlite3.connect(path) as database:
        for step, metrics in database.execute("select step, metrics from metrics order by step"):
            for name, value in json.loads(metrics).items():
                found.setdefault(name, []).append((step, value))
    return found


READERS: dict[str, Callable[[Path], Curves]] = {
    "tensorboard": tensorboard_files, "wandb": wandb_files, "trackio": trackio_files,
}  # fmt: skip
INSTALLED = [
    tool for tool in TRACKERS if find_spec(tool)
]  # trackio asks for an older pillow than the kit's other tools

TRAIN = """
import sys
from pathlib import Path
import torch
from kit.trackers import tracker
from tests.conftest import tiny_run

torch.set_num_threads(1)
model, *tools = sys.argv[1:]
tiny_run(Path(model), Path("plain"), max_steps=3, eval_steps=2).finish()
run = tiny_run(Path(model), Path("tracked"), max_steps=3, eval_steps=2)
run.listeners += [tracker(tool, project="project", name="a run", config={"seed": 0}) for tool in tools]
run.finish()
for listener in run.listeners:
    listener.close()
"""


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one with a listener for each tool, in a process of their own: the tools keep threads and settings."""
    folder = tmp_path_factory.mktemp("trained")
    own = {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "TRACKIO_DIR": str(folder / "trackio")}
    own |= {
        "WANDB_CACHE_DIR": str(folder),
        "WANDB_CONFIG_DIR": str(folder),
        "WANDB_SILENT": "true",
        "HOME": str(folder),
    }
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | own
    command = [sys.executable, "-c", TRAIN, str(tiny_folder), *INSTALLED]
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return folder


def test_the_tools_of_the_development_environment_are_there() -> None:
    assert {"tensorboard", "wandb"} <= set(INSTALLED)


def test_a_run_with_trackers_is_the_run_without(trained: Path) -> None:
    assert untimed(trained / "tracked") == untimed(trained / "plain")


@pytest.mark.parametrize("tool", INSTALLED)
def test_every_number_of_a_run_arrives(trained: Path, tool: str) -> None:
    wanted: Curves = {}
    for record in read_jsonl(trained / "tracked" / "metrics.jsonl"):
        for name, value in record.items():
            if name != "step":
                wanted.setdefault(name, []).append((record["step"], value))
    found = READERS[tool](trained)
    assert found.keys() == wanted.keys() and len(found["eval/accuracy"]) == 3  # at 0, 2 and the end
    for name, points in wanted.items():
        assert found[name] == [(step, pytest.approx(value, rel=1e-6, abs=1e-30)) for step, value in points], name


def sent_by(record: dict[str, Any]) -> list[tuple[int, dict[str, float]]]:
    sent: list[tuple[int, dict[str, float]]] = []
    Tracker("a tool", Connection(lambda step, numbers: sent.append((step, numbers)), lambda: None))(record)
    return sent


def test_only_finite_numbers_are_sent() -> None:
    record = {"step": 3, "reward": 1, "loss": math.nan, "note": "<b>", "flag": True, "drift": math.inf, "none": None}
    assert sent_by(record) == [(3, {"step": 3.0, "reward": 1.0})]


@pytest.mark.parametrize("error", [OSError("no space\x1b[31m left"), ValueError("bad"), ConnectionError("gone")])
def test_a_tool_that_fails_is_told_of_once_and_the_run_goes_on(
    start: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    calls: list[int] = []

    def fail(step: int, numbers: dict[str, float]) -> None:
        calls.append(step)
        if step == 1:
            raise error

    run = start(tmp_path, max_steps=4)
    failing = Tracker("a tool", Connection(fail, lambda: calls.append(-1)))
    run.listeners.append(failing)
    with caplog.at_level(logging.WARNING, "kit.trackers"):
        run.finish()
        failing.close()
    assert calls == [0, 1] and run.step == 4
    (told,) = [entry.getMessage() for entry in caplog.records if entry.name == "kit.trackers"]
    assert "a tool failed at step 1" in told and type(error).__name__ in told and "\x1b" not in told


def test_an_unknown_tool_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a tracker out of trackio, wandb, tensorboard, came 'mlflow'"):
        tracker("mlflow", project="p", name="n")


def test_a_tool_that_is_not_installed_is_named_with_the_command() -> None:
    """In a process where the import system finds none of them."""
    code = """
import sys
sys.modules |= dict.fromkeys(("wandb", "trackio", "tensorboard"))
from kit.trackers import TRACKERS, tracker
for tool in TRACKERS:
    try:
        tracker(tool, project="p", name="n")
    except ImportError as error:
        print(error)
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = finished.stdout.splitlines()
    assert [f"expected the package {tool} to be installed: `pip install {tool}`" in line for tool, line in
            zip(TRACKERS, lines, strict=True)] == [True] * 3  # fmt: skip
