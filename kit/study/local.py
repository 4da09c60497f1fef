"""Runs as subprocesses of this machine, some at a time."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kit.study.execute import Job
from kit.study.worker import STATUS

# What libraries of numbers read when they start; a kernel is not the only one with threads on a machine.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Subprocesses:
    """Starts up to `workers` runs at a time, each in a process of its own with threads and GPUs of its own.

    Args:
        workers: >= 1.
        gpus: what `CUDA_VISIBLE_DEVICES` can name; None = as found on this machine, where a run asks for any.
    """

    def __init__(self, workers: int = 1, gpus: Sequence[str] | None = None) -> None:
        if workers < 1:
            raise ValueError(f"expected workers >= 1, came {workers}")
        self.workers = workers
        self._gpus = gpus
        self._running: list[Subprocess] = []

    def start(self, job: Job) -> "Subprocess | None":
        self._running = [process for process in self._running if process.ended() is None]
        if len(self._running) >= self.workers:
            return None
        gpus = self._free_gpus()[: job.gpus] if job.gpus else ()
        if job.gpus and len(gpus) < job.gpus:
            return None
        process = Subprocess(job, self._environment(job, gpus), gpus)
        self._running.append(process)
        return process

    def refusal(self, job: Job) -> str | None:
        """Why this machine can never execute a run; None if it can."""
        there = len(self._all_gpus()) if job.gpus else 0
        if job.gpus and job.gpus > there:
            return f"asks for {job.gpus} GPUs, and {there} can be seen here: lower resources.gpus"
        return None

    def _free_gpus(self) -> tuple[str, ...]:
        taken = {gpu for process in self._running for gpu in process.gpus}
        return tuple(gpu for gpu in self._all_gpus() if gpu not in taken)

    def _all_gpus(self) -> Sequence[str]:
        if self._gpus is None:
            self._gpus = visible_gpus()
        return self._gpus

    def _environment(self, job: Job, gpus: Sequence[str]) -> dict[str, str]:
        environment = environment_of(job.threads or max(1, (os.cpu_count() or 1) // self.workers))
        if job.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return environment


def environment_of(threads: int) -> dict[str, str]:
    """This process's, with so many threads for libraries of numbers."""
    return os.environ | dict.fromkeys(THREADS, str(threads))


class Subprocess:
    """A run under way. It is in a session of its own, so that a terminal's Ctrl-C comes through us, once."""

    def __init__(self, job: Job, environment: dict[str, str], gpus: Sequence[str] = ()) -> None:
        self.gpus = gpus
        command = [sys.executable, "-m", "kit.study.worker", job.name]
        self._log = Path(job.payload["record"]).with_suffix(".log")
        with self._log.open("wb") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:  # if it is dead already, `ended` tells
            pipe.write(json.dumps(job.payload | {"parent": os.getpid()}).encode())

    def ended(self) -> str | None:
        status = self._process.poll()
        if status is None or status in STATUS.values():
            return None if status is None else ""
        if status < 0:
            return f"its process was killed ({signal.Signals(-status).name})"
        said = self._log.read_text(errors="replace").split("\n")
        last = next((line for line in reversed(said) if line.strip()), "no word")
        return f"its process ended with status {status} and {last!r}: see {self._log}"

    def interrupt(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)


def visible_gpus() -> tuple[str, ...]:
    """As `CUDA_VISIBLE_DEVICES` names them; none without a driver."""
    import torch  # takes seconds

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return tuple(filter(None, given.split(",")))
    return tuple(str(number) for number in range(torch.cuda.device_count()))
