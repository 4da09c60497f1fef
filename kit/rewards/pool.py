"""A pool of worker processes that can be killed: one hanging or exploding item costs its deadline, never the run.

Timeouts by signal work on the main thread only (elsewhere libraries fall back to scoring 0), and a thread cannot be
stopped. So items are judged in processes of their own. They are started as plain commands that speak JSON lines, not
through `multiprocessing`: nothing is pickled, nothing re-imports the main module (which in a notebook has no file), and
nothing is forked from a process that runs threads. POSIX only.
"""

import json
import logging
import os
import select
import signal
import subprocess
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import IO, Any, cast

START_TIMEOUT_S = 60.0  # seconds for a worker to import its libraries, on a very busy machine
LIBRARY_ROOT = Path(__file__).parents[2]  # where `import kit` is found, also when the kit is not installed

logger = logging.getLogger(__name__)


class WorkerPool:
    """Runs items through worker processes, each under a deadline and a memory limit.

    Workers start with the first `run` and are replaced when they die. They end with `close`, with the pool, with the
    interpreter, and when the parent is killed (their input ends; a busy one is ended by its own alarm clock).
    Calls from several threads are served one after the other.

    Args:
        command: starts a worker: a program that calls `kit.rewards.worker.serve`.
        workers: processes at a time, at least 1.
        timeout_s: seconds one item may take, > 0.
        memory_bytes: address space a worker may take, libraries included (Linux).

    Attributes:
        counts: since the pool was made, items lost to `timeouts` (killed at the deadline), `crashes` (the worker ended
            or ran out of memory or stack) and `errors` (the worker raised, and lives on).
        last_error: what the latest of these `errors` said.

    Raises:
        ValueError: if there is no worker, no time or no memory.
    """

    def __init__(
        self, command: Sequence[str], *, workers: int = 2, timeout_s: float = 5.0, memory_bytes: int = 1 << 30
    ) -> None:
        if workers < 1 or timeout_s <= 0 or memory_bytes <= 0:
            raise ValueError(
                "expected workers >= 1, timeout_s > 0 and memory_bytes > 0, "
                f"got workers={workers}, timeout_s={timeout_s}, memory_bytes={memory_bytes}"
            )
        self.command, self.workers, self.timeout_s, self.memory_bytes = command, workers, timeout_s, memory_bytes
        self.counts = {"timeouts": 0, "crashes": 0, "errors": 0}
        self.last_error: str | None = None
        self._live: list[_Worker] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _end, self._live)  # runs when the pool is collected, or at exit

    def run(self, items: Sequence[Any]) -> list[Any]:
        """What the workers answer to `items`, in order; `None` for an item that was lost (see `counts`).

        Raises:
            RuntimeError: if a worker cannot start, or the pool was forked together with its running workers.
        """
        requests = [json.dumps(item).encode() + b"\n" for item in items]
        with self._lock:
            if any(worker.owner != os.getpid() for worker in self._live):
                raise RuntimeError(
                    f"expected the pool to be used by process {self._live[0].owner}, which started its workers, got a "
                    f"call in its fork {os.getpid()}: make a new pool there"
                )
            try:
                return self._judge(requests)
            finally:  # after an interrupt, late answers to this batch must not pass for answers to the next
                _end(self._live, only=[worker for worker in self._live if worker.is_busy])

    def close(self) -> None:
        """End all workers now. A later `run` starts new ones."""
        with self._lock:
            _end(self._live)

    def _judge(self, requests: list[bytes]) -> list[Any]:
        answers: list[Any] = [None] * len(requests)
        waiting = deque(enumerate(requests))
        while waiting or any(worker.is_busy for worker in self._live):
            self._hand_out(waiting)
            for worker in _wait(self._live):
                self._receive(worker, answers)
            for worker in [w for w in self._live if monotonic() >= w.deadline]:
                self._bury(worker, "ran out of time", "timeouts")
        return answers

    def _hand_out(self, waiting: deque[tuple[int, bytes]]) -> None:
        """Give every idle worker an item, and start workers for what is left."""
        _end(self._live, only=[worker for worker in self._live if worker.is_idle and worker.process.poll() is not None])
        for worker in self._live:
            if worker.is_idle and waiting:
                worker.give(*waiting.popleft(), deadline=monotonic() + self.timeout_s)
        starting = sum(worker.is_starting for worker in self._live)
        for _ in range(min(self.workers - len(self._live), len(waiting) - starting)):
            self._live.append(_Worker(self.command, {"timeout_s": self.timeout_s, "memory_bytes": self.memory_bytes}))

    def _receive(self, worker: "_Worker", answers: list[Any]) -> None:
        """Take what `worker` sent: that it is ready, an answer, an error, or its end."""
        try:
            reply = worker.receive()
        except EOFError:
            code = worker.process.wait()
            kind = "timeouts" if code == -signal.SIGALRM else "crashes"  # its own clock may be first if we were stopped
            return self._bury(worker, f"ended with exit code {code}", kind)
        if reply is None:
            return
        if worker.item is not None and "value" in reply:
            answers[worker.item] = reply["value"]
        elif worker.item is not None:
            self.last_error = reply["error"]
            self._count("errors", worker, f"said {self.last_error}")
        worker.rest()

    def _bury(self, worker: "_Worker", reason: str, kind: str) -> None:
        """Kill `worker` and count the item that it was judging. One that never got ready is a broken installation."""
        if worker.is_starting:
            words = worker.last_words()
            _end(self._live)
            raise RuntimeError(
                f"expected the worker {' '.join(self.command)!r} to be ready within {START_TIMEOUT_S:.0f} s, but it "
                f"{reason}: see that this command runs by itself. Its last words: {words or 'none'}"
            )
        if worker.is_busy:
            self._count(kind, worker, reason)
        _end(self._live, only=[worker])

    def _count(self, kind: str, worker: "_Worker", reason: str) -> None:
        self.counts[kind] += 1
        level = logging.WARNING if self.counts[kind] == 1 else logging.DEBUG  # one of a kind is news, the rest a number
        logger.log(level, "%s: no verdict, the worker %s; the item was %.200r", kind, reason, worker.request.decode())


class _Worker:
    """One process as the pool sees it: its pipes, the item it is judging and until when."""

    def __init__(self, command: Sequence[str], limits: dict[str, float]) -> None:
        self.owner = os.getpid()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        search = [str(LIBRARY_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=0,
            start_new_session=True,  # a Ctrl-C in the terminal is for the run, which ends at a step boundary
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search), "PYTHONHASHSEED": "0"},  # same verdict always
        )  # fmt: skip
        self.stdin, self.stdout = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)
        os.set_blocking(self.stdin.fileno(), False)
        os.set_blocking(self.stdout.fileno(), False)
        self.is_starting, self.item, self.request = True, None, b""
        self.inbox, self.outbox = b"", json.dumps(limits).encode() + b"\n"
        self.deadline = monotonic() + START_TIMEOUT_S

    @property
    def is_busy(self) -> bool:
        return self.item is not None

    @property
    def is_idle(self) -> bool:
        return self.item is None and not self.is_starting

    def give(self, item: int, request: bytes, *, deadline: float) -> None:
        self.item, self.request, self.outbox, self.deadline = item, request, request, deadline
        self.write()

    def rest(self) -> None:
        self.is_starting, self.item, self.request, self.deadline = False, None, b"", float("inf")

    def write(self) -> None:
        """Send as much of the request as the pipe takes now."""
        with suppress(BrokenPipeError):  # it died: the end of its output says so to the reader
            self.outbox = self.outbox[self.stdin.write(self.outbox) or 0 :]

    def receive(self) -> dict[str, Any] | None:
        """The reply, once it is complete. Raises EOFError if the worker ended."""
        chunk = self.stdout.read(1 << 16)
        if chunk == b"":
            raise EOFError
        self.inbox += chunk or b""
        line, newline, rest = self.inbox.partition(b"\n")
        if not newline:
            return None
        self.inbox = rest
        return json.loads(line)

    def last_words(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace").strip()[-1000:]


def _wait(workers: list[_Worker]) -> list[_Worker]:
    """Sleep until workers have sent something or the first deadline is reached; send them what is left to send."""
    poll, readers = select.poll(), {worker.stdout.fileno(): worker for worker in workers}
    for worker in workers:
        poll.register(worker.stdout, select.POLLIN)
        if worker.outbox:
            poll.register(worker.stdin, select.POLLOUT)
    left_s = min(worker.deadline for worker in workers) - monotonic()
    events = {descriptor for descriptor, _ in poll.poll(max(0.0, left_s) * 1000 + 1)}  # rounded down: do not spin at 0
    for worker in workers:
        if worker.outbox and worker.stdin.fileno() in events:
            worker.write()
    return [readers[descriptor] for descriptor in readers if descriptor in events]


def _end(live: list[_Worker], only: Iterable[_Worker] | None = None) -> None:
    """Kill workers (all by default) and take them off the list. In a fork of the owner they are left alone."""
    for worker in list(live if only is None else only):
        live.remove(worker)
        if worker.owner == os.getpid():
            worker.process.kill()
            worker.process.wait()
        for pipe in (worker.stdin, worker.stdout, worker.errors):
            pipe.close()
