"""How a process of the kit joins a Ray cluster; light, because a command starts with it."""

import os
import socket
from pathlib import Path
from typing import Any

CONNECT_S = 10.0


def require_answer(address: str) -> None:
    """Raises ConnectionError if nothing answers at an address of a host and a port. Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address:  # auto, local, or ray://
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"expected a Ray cluster's head at {address}, came {error}: start one (ray start --head) or correct this"
        ) from error


def inherited() -> dict[str, Any]:
    """Where a worker finds the kit, if it is not installed but lies in the folder that Python was started in."""
    places = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, places))}}
