"""A study on a real Ray cluster of several nodes on this machine, one of which is killed."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.study.execute import run_study
from kit.study.file import StudyError, read_study
from kit.study.local import Subprocesses
from kit.study.on_ray import RayTasks
from kit.study.record import INTERRUPTED, read_record, record_path
from kit.study.results import collect
from tests.conftest import LOCAL
from tests.counting_study import starts, write_study

SIX = (
    "notebook: {notebook}\nshared: {steps: 20, pause: 0.4}\narms:\n  low: {rate: 1.0}\n  high: {rate: 2.0}\n"
    "seeds: [0, 1, 2]\nresources: {threads: 1}\n"
)
SMALL: dict[str, Any] = {"object_store_memory": 80 * 2**20}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of Ray's own processes and sockets


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three nodes of one CPU each, and a head that executes nothing."""
    import ray
    from ray.cluster_utils import Cluster

    made: Any = Cluster(initialize_head=True, head_node_args=SMALL | {"num_cpus": 0})
    made.workers = [made.add_node(num_cpus=1, **SMALL) for _ in range(3)]
    made.wait_for_nodes()
    monkeypatch.setattr("tests.conftest.LOCAL", {*LOCAL, made.head_node.node_ip_address})  # this machine's own address
    yield made
    ray.shutdown()
    made.shutdown()
    gc.collect()  # sockets that Ray leaves open complain here, rather than in a test of somebody else


def test_a_node_is_killed_and_the_results_are_the_same(cluster: Any, tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", SIX)
    study = read_study(folder)
    killed: list[Any] = []

    def watch(running: Any, outcome: Any) -> None:
        begun = [name for name in running if len(list(folder.glob(f"runs/{name}/metrics.jsonl"))) > 0]
        if not killed and len(begun) == 3:
            killed.append(cluster.workers[0])
            cluster.remove_node(cluster.workers[0], allow_graceful=False)

    outcome = run_study(study, RayTasks(cluster.address, 6), watch)
    assert killed and (outcome.failed, outcome.waiting, outcome.interrupted) == ({}, {}, [])
    assert sorted(outcome.finished) == sorted(study.runs)
    assert max(len(starts(folder, name)) for name in study.runs) == 2  # the run that was on it, once more
    results = collect(study).read_bytes()

    here = write_study(tmp_path / "here", SIX.replace("0.4", "0.0"))
    assert run_study(read_study(here), Subprocesses(2)).status == 0
    assert results == collect(read_study(here)).read_bytes()


def test_what_no_node_can_hold_is_refused_before_anything_starts(cluster: Any, tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", SIX.replace("threads: 1", "threads: 1, gpus: 1"))
    with pytest.raises(StudyError, match=r"asks for 1 threads and 1 GPUs on one node, and .*1 CPUs and 0"):
        run_study(read_study(folder), RayTasks(cluster.address, 6))
    assert not (folder / "runs").exists()


def test_a_signal_ends_runs_at_a_step_and_they_go_on(cluster: Any, tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", SIX.replace("seeds: [0, 1, 2]", "seeds: [0]"))
    study, sent = read_study(folder), []

    def watch(running: Any, outcome: Any) -> None:
        steps = [path.read_text().count("\n") for path in folder.glob("runs/*/metrics.jsonl")]
        if not sent and len(steps) == 2 and min(steps) > 0:
            sent.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    executor = RayTasks(cluster.address, 6)
    outcome = run_study(study, executor, watch)
    assert outcome.status == 128 + signal.SIGTERM and sorted(outcome.interrupted) == sorted(study.runs)
    records = [read_record(record_path(run)) for run in study.runs.values()]
    assert [record and record.state for record in records] == [INTERRUPTED] * 2
    assert run_study(study, executor).status == 0
    assert all(0 < starts(folder, name)[1] < 20 for name in study.runs)  # from where they were


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port"])
def test_no_cluster_is_an_error_that_says_so(address: str) -> None:
    with pytest.raises(ConnectionError, match=f"expected a Ray cluster's head at {address}, came .*: start one"):
        RayTasks(address, 1)
