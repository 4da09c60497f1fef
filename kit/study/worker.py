"""The process of one run: `python -m kit.study.worker NAME`, with its job as JSON on stdin.

It holds the run's lock, and so does its kernel: nobody else works in the run directory before both are gone. If who
started it is gone, it ends as on SIGTERM: no run is left that nobody watches.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kit.runlog import write_json
from kit.study.lock import locked
from kit.study.notebook import Interrupted, execute_notebook
from kit.study.record import FAILED, FINISHED, INTERRUPTED, Record, read_record

STATUS = {FINISHED: 0, FAILED: 3, INTERRUPTED: 130}  # 1 is Python's, for what was not expected


def work(job: Mapping[str, Any], is_watched: Callable[[], bool]) -> str:
    """Execute the job's notebook unless another process has finished it meanwhile; returns the state it is in now.

    Args:
        job: see `kit.study.execute.job_of`.
        is_watched: whether there still is somebody who waits for it.
    """
    path, asked = Path(job["record"]), Record(**job["asked"])
    with locked(path.with_suffix(".lock"), is_watched) as descriptor:
        before = read_record(path)
        if before is not None and before.state == FINISHED and not job["again"]:
            return FINISHED
        record = replace(asked, seconds=before.seconds if before else 0.0)
        write_json(path, asdict(record))
        started, state, cause = time.monotonic(), FINISHED, None
        try:
            execute_notebook(job["notebook"], job["output"], job["parameters"], kept_open=(descriptor,))
        except Interrupted:
            state = INTERRUPTED
        except (OSError, RuntimeError, ValueError) as error:
            state, cause = FAILED, (str(error).strip() or type(error).__name__).splitlines()[-1]
        has_directory = Path(job["parameters"]["out_dir"]).is_dir()
        ended = record.ended(state, seconds=time.monotonic() - started, cause=cause, has_directory=has_directory)
        write_json(path, asdict(ended))
        return state


def main() -> int:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # a Ray worker hands down its mask
    job = json.load(sys.stdin)

    def is_watched() -> bool:
        return os.getppid() == job["parent"]

    def watch() -> None:
        while is_watched():
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    return STATUS[work(job, is_watched)]


if __name__ == "__main__":
    sys.exit(main())
