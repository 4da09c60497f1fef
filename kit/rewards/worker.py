"""The worker's side of `kit.rewards.pool`: a loop that judges one item at a time under limits the kernel enforces.

Requests and replies are JSON, one a line, over the pipes the pool opened. This module imports nothing heavy, so that a
worker starts in the time its own judge takes to import.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

GRACE_S = 1.0  # seconds after the pool's deadline at which the kernel ends a worker whose pool is gone
MAX_ERROR_CHARS = 500


def serve(judge: Callable[[Any], Any]) -> None:
    """Answer the pool's requests with `judge`, until the pool closes its end of the pipe or dies.

    The first line carries the limits; the worker then says that it is ready. An exception of `judge` is an answer (the
    pool counts it); running out of memory or stack ends the process, since it can no longer be trusted. A judge that
    holds the interpreter lock forever is ended by the kernel's alarm clock, also when nobody is left to kill it.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    hello = requests.readline()
    if not hello:
        return  # the pool died before it could say anything
    limits = json.loads(hello)
    _limit_memory(limits["memory_bytes"])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _send(replies, {"ready": True})
    _silence()
    for line in requests:
        signal.setitimer(signal.ITIMER_REAL, limits["timeout_s"] + GRACE_S)
        reply = _reply(judge, json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(replies, reply)


def _reply(judge: Callable[[Any], Any], item: Any) -> dict[str, Any]:
    """What `judge` says about `item`, or the error it raised.

    >>> _reply(abs, -2), _reply(abs, "x")
    ({'value': 2}, {'error': "TypeError: bad operand type for abs(): 'str'"})
    """
    try:
        return {"value": judge(item)}
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # not hidden: the pool counts and logs what is said here
        return {"error": f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]}


def _send(replies: BinaryIO, message: dict[str, Any]) -> None:
    try:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()
    except BrokenPipeError:
        os._exit(0)  # the pool is gone: nobody to answer


def _limit_memory(memory_bytes: int) -> None:
    """Cap the address space. macOS refuses such caps: there the deadline alone protects."""
    if sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _silence() -> None:
    """Send whatever a library prints nowhere: the pipe belongs to the replies, and the pool's log must not grow."""
    with open(os.devnull, "r+b") as devnull:
        for stream in (0, 1, 2):
            os.dup2(devnull.fileno(), stream)
