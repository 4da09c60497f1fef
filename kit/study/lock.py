"""A lock that is held by processes rather than by a file's existence: whatever kills them, it is free again."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.2


@contextmanager
def locked(path: Path, still_wanted: Callable[[], bool] = lambda: False) -> Iterator[int]:
    """Hold the lock at `path`; yields its file descriptor, with which another process can hold it as well.

    Args:
        still_wanted: asked while somebody else holds it, whether to go on waiting.

    Raises:
        BlockingIOError: if somebody else holds it, naming the process.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if not still_wanted():
                    holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
                    raise BlockingIOError(f"{path} is held by process {holder}: wait for it, or end it") from error
            time.sleep(POLL_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
