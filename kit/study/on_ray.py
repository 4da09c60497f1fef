"""Runs as tasks of a Ray cluster: on any node with room, and again on another if a node dies.

All nodes need the kit in the same place and the study's folder on a file system that they share: a run that was on a
dead node goes on from its checkpoint there.
"""

import logging
import os
import time
from dataclasses import asdict
from typing import Any

from kit.ray_address import inherited, require_answer
from kit.study.execute import Job
from kit.study.local import Subprocess, environment_of

RETRIES = 10  # of a run, after nodes that died
POLL_S = 0.5


class RayTasks:
    """Hands up to `workers` runs at a time to a cluster that exists; Ray decides where each of them goes, and when.

    Args:
        address: as `ray.init` takes it; "auto" finds the cluster of this machine.
        workers: >= 1.

    Raises:
        ImportError: if Ray is not installed.
        ConnectionError: if there is no cluster at that address.
    """

    def __init__(self, address: str, workers: int) -> None:
        import ray

        if workers < 1:
            raise ValueError(f"expected workers >= 1, came {workers}")
        self.workers = workers
        require_answer(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=inherited())
        self._nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._running: list[RayTask] = []

    def start(self, job: Job) -> "RayTask | None":
        self._running = [task for task in self._running if task.ended() is None]
        if len(self._running) >= self.workers:
            return None
        self._running.append(RayTask(job))
        return self._running[-1]

    def refusal(self, job: Job) -> str | None:
        """Why no node can ever execute a run; None if one can."""
        threads, gpus = job.threads or 1, job.gpus or 0
        if any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= gpus for node in self._nodes):
            return None
        largest = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in self._nodes)
        return f"asks for {threads} threads and {gpus} GPUs on one node, and the nodes have {largest}: lower resources"


class RayTask:
    """A run on the cluster, waiting for room at first."""

    def __init__(self, job: Job) -> None:
        import ray

        task = ray.remote(max_retries=RETRIES, num_cpus=job.threads or 1, num_gpus=job.gpus or 0)(_execute)
        self._result = task.options(name=job.name).remote(asdict(job), os.getcwd())

    def ended(self) -> str | None:
        import ray
        from ray.exceptions import RayError, TaskCancelledError

        done, _ = ray.wait([self._result], timeout=0)
        if not done:
            return None
        try:
            return ray.get(self._result)
        except TaskCancelledError:
            return ""
        except RayError as error:
            return " ".join(str(error).split())[:300]

    def interrupt(self) -> None:
        import ray

        ray.cancel(self._result, force=False)  # in the task it is a KeyboardInterrupt


def _execute(job: dict[str, Any], folder: str) -> str:
    """On a node: the same process as on one machine, until it ends."""
    os.chdir(folder)
    made = Job(**job)
    process = Subprocess(made, environment_of(made.threads or 1))
    while (ended := process.ended()) is None:
        try:
            time.sleep(POLL_S)
        except KeyboardInterrupt:
            process.interrupt()
    return ended
