"""Ctrl-C that waits for the end of a step instead of tearing it apart; a second one does not wait."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE_S = 1.0  # seconds within which a further Ctrl-C counts as the same one
MESSAGE = b"\nCtrl-C: stopping after this step. Once more stops now; the run then goes on from its last checkpoint.\n"


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Inside, an interrupt is only remembered; the yielded function says whether one came.

    A second one, at least `PATIENCE_S` later, is raised at once: a reward function or a device that hangs would keep
    the step from ever ending. It leaves the run directory as a kill would, which is what resuming can deal with; the
    objects in memory are half-way through a step, and are to be made anew.

    Off the main thread, where Python delivers no signals, nothing changes and the answer is always no.
    """
    received: list[float] = []  # when

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(time.monotonic())
        if received[-1] - received[0] >= PATIENCE_S:
            raise KeyboardInterrupt
        if len(received) == 1:
            os.write(2, MESSAGE)  # print could be in the middle of a line of its own

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, previous)
