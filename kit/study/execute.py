"""Carrying out a study: which run starts when, what becomes of it, and what is said at the end.

Who executes a run is a value: `kit.study.local.Subprocesses` starts it here. Another has the same three methods.
"""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, Protocol, runtime_checkable

from kit.study.file import Study, StudyError, StudyRun
from kit.study.lock import locked
from kit.study.record import FINISHED, INTERRUPTED, asked_record, is_finished, read_record, record_path

POLL_S = 0.2


@dataclass(frozen=True)
class Job:
    """A run for an executor: what `kit.study.worker` is told, and what it needs."""

    name: str
    payload: dict[str, Any]
    threads: int | None
    gpus: int | None


@runtime_checkable
class Execution(Protocol):
    """A run under way."""

    def ended(self) -> str | None:
        """None while it runs; then how it was ended, or an empty text if the run's record tells that."""
        ...

    def interrupt(self) -> None:
        """Let it end at the next step's end."""
        ...


@runtime_checkable
class Executor(Protocol):
    def start(self, job: Job) -> Execution | None:
        """None if there is no room at the moment."""
        ...

    def refusal(self, job: Job) -> str | None:
        """Why a run can never be executed; None if it can."""
        ...


@dataclass
class Outcome:
    """What became of each run."""

    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # -> cause
    waiting: dict[str, str] = field(default_factory=dict)  # -> the run that it waits for, and that is not finished
    interrupted: list[str] = field(default_factory=list)  # by a signal, or not started when it came
    signal: int | None = None

    @property
    def status(self) -> int:
        """Of the command: 0 if all are finished, 1 if one failed, 128 + the signal's number if one came."""
        if self.signal is not None:
            return 128 + self.signal
        return int(bool(self.failed or self.waiting or self.interrupted))


# What is told of a study under way: the runs being executed, and what became of the others.
Watch = Callable[[Mapping[str, StudyRun], Outcome], None]


def run_study(study: Study, executor: Executor, watch: Watch = lambda running, outcome: None) -> Outcome:
    """Execute the runs that are not finished; those that were interrupted or killed go on from their checkpoints.

    A run that fails does not stop the others. SIGINT and SIGTERM end all of them at a step's end.

    Raises:
        StudyError: before anything starts: a run was made with other parameters, or can never be executed.
        BlockingIOError: if another process executes this study.
    """
    refuse_changes(study)
    jobs = {name: job_of(study, run) for name, run in study.runs.items()}
    refused = [f"{study.path}: {name} {said}" for name, job in jobs.items() if (said := executor.refusal(job))]
    if refused:
        raise StudyError("\n".join(refused))
    (study.folder / "runs").mkdir(exist_ok=True)
    with locked(study.lock):
        return _Conductor(study, jobs, executor, watch).conduct()


def refuse_changes(study: Study) -> None:
    """Compare each run that was started with what the study says now.

    Raises:
        StudyError: naming the runs that were made with something else, what it was, and what to do.
    """
    lines = []
    for name, run in study.runs.items():
        earlier = read_record(record_path(run))
        changes = asked_record(study, run).differences(earlier) if earlier else []
        if changes:
            lines.append(f"{study.path}: {name} was made with other parameters ({'; '.join(changes)}): restore them, "
                         f"name the arm anew, or remove {run.out_dir} and {run.out_dir}.*")  # fmt: skip
    if lines:
        raise StudyError("\n".join(lines))


def job_of(study: Study, run: StudyRun) -> Job:
    record = read_record(record_path(run))
    payload = {
        "notebook": str(study.notebook),
        "output": str(run.output),
        "parameters": dict(run.parameters),
        "record": str(record_path(run)),
        "asked": asdict(asked_record(study, run)),
        "again": record is not None and record.state == FINISHED and not is_finished(run),  # what came out was removed
    }
    return Job(run.name, payload, run.threads, run.gpus)


class _Conductor:
    def __init__(self, study: Study, jobs: Mapping[str, Job], executor: Executor, watch: Watch) -> None:
        self.study, self.jobs, self.executor, self.watch = study, jobs, executor, watch
        self.running: dict[str, Execution] = {}
        self.outcome = Outcome(finished=[name for name, run in study.runs.items() if is_finished(run)])
        self.pending = [name for name in study.runs if name not in self.outcome.finished]

    def conduct(self) -> Outcome:
        with self._signals():
            while self.running or (self.pending and self.outcome.signal is None):
                for name in [name for name, execution in self.running.items() if execution.ended() is not None]:
                    self._conclude(name, self.running.pop(name))
                if self.outcome.signal is None:
                    self._start()
                self.watch({name: self.study.runs[name] for name in self.running}, self.outcome)
                if self.running:
                    time.sleep(POLL_S)
        self.outcome.interrupted += self.pending
        self.watch({}, self.outcome)
        return self.outcome

    def _start(self) -> None:
        """In the file's order, as far as there is room and what comes before is finished."""
        lost = {*self.outcome.failed, *self.outcome.interrupted, *self.outcome.waiting}
        for name in tuple(self.pending):
            before = self.study.runs[name].after
            if before is not None and before in lost:
                self.outcome.waiting[name] = before
                lost.add(name)
                self.pending.remove(name)
            elif before is None or before in self.outcome.finished:
                execution = self.executor.start(self.jobs[name])
                if execution is None:
                    return
                self.running[name] = execution
                self.pending.remove(name)

    def _conclude(self, name: str, execution: Execution) -> None:
        record, killed = read_record(record_path(self.study.runs[name])), execution.ended()
        state = record.state if record else None
        if state == FINISHED:
            self.outcome.finished.append(name)
        elif (state == INTERRUPTED and not killed) or self.outcome.signal is not None:
            self.outcome.interrupted.append(name)
        else:
            self.outcome.failed[name] = killed or str(record and record.cause)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Inside, SIGINT and SIGTERM are passed on to the runs, and no further run starts."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.outcome.signal = number
            for execution in tuple(self.running.values()):
                execution.interrupt()

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
