"""What is new in a run's events.jsonl since one last looked."""

import json
from pathlib import Path
from typing import Any


class Tail:
    """Reads a growing file of JSON lines a piece at a time; a line that is still being written waits.

    Args:
        path: of the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def new(self) -> list[dict[str, Any]]:
        """The complete lines since the last call."""
        if not self._path.exists() or self._path.stat().st_size <= self._read:
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            complete = file.read().rpartition(b"\n")[0]
        self._read += len(complete) + 1 if complete else 0
        return [json.loads(line) for line in complete.splitlines()]
