"""JupyterLab as a process of its own, with settings, folders and a port of its own, which never outlives the test."""

import json
import os
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupyterlab

ROOT = Path(__file__).parents[2]
START_S = 300.0  # on a busy machine; about 2 s on two idle cores
STOP_S = 20.0  # to end its kernels and itself
LAST_LINES = 40
# Waits until this process has gone, however it went, or closes the pipe; then ends the server, which ends its kernels.
WATCHER = "cat >/dev/null; kill $0"
# Beyond what a user's JupyterLab has: it asks the internet for nothing.
SETTINGS: dict[str, dict[str, Any]] = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/extensionmanager-extension/plugin": {"enabled": False},
}


class JupyterDidNotStart(RuntimeError):
    """The server ended, or did not answer in time."""


@dataclass(frozen=True)
class JupyterServer:
    """A running server: `url` ends in a slash, `folder` is what it shows, `log` has what it and its kernels print."""

    url: str
    folder: Path
    token: str
    log: Path
    process: subprocess.Popen[bytes]

    def ask(self, method: str, place: str) -> bytes:
        """The answer of its REST API."""
        request = urllib.request.Request(
            self.url + place, method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
            return response.read()

    def printed(self, start: int = 0) -> str:
        """The last lines that it and its kernels printed, of what lies behind byte `start` of the log."""
        return "\n".join(self.log.read_bytes()[start:].decode(errors="replace").splitlines()[-LAST_LINES:])

    def end_kernels(self) -> None:
        """Ends every notebook's kernel."""
        for session in json.loads(self.ask("GET", "api/sessions")):
            self.ask("DELETE", f"api/sessions/{session['id']}")


@contextmanager
def serve(scratch: Path, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[JupyterServer]:
    """JupyterLab on a free port of 127.0.0.1 until the block ends; all that it reads and writes is below `scratch`.

    Args:
        settings: JupyterLab's settings beyond `SETTINGS`, plugin -> values, as its settings editor shows them.

    Raises:
        JupyterDidNotStart: with the last lines of what it printed.
    """
    folder = scratch / "notebooks"
    folder.mkdir(parents=True)
    for plugin, values in (SETTINGS | dict(settings or {})).items():
        file = scratch / "settings" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    port, token, log = _free_port(), secrets.token_hex(16), scratch / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(folder, port, token), env=os.environ | _environment(scratch), cwd=folder, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    watcher = subprocess.Popen(["sh", "-c", WATCHER, str(process.pid)], stdin=subprocess.PIPE, start_new_session=True)
    server = JupyterServer(f"http://127.0.0.1:{port}/", folder, token, log, process)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        watcher.communicate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        process.kill()
        process.wait()


def _command(folder: Path, port: int, token: str) -> list[str]:
    # The Python of the environment that JupyterLab is in, which is a user's; the tests' own one only adds a browser.
    python = Path(jupyterlab.__file__).parents[4] / "bin" / "python"
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder,
        "ServerApp.allow_root": True,
        "ServerApp.open_browser": False,
        "IdentityProvider.token": token,
        "LabApp.expose_app_in_browser": True,
        "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    return [str(python), "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]


def _environment(scratch: Path) -> dict[str, str]:
    own = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    return {name: str(scratch / place) for name, place in own.items()} | {"PYTHONPATH": str(ROOT)}


def _wait_until_ready(server: JupyterServer) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.process.poll() is None:
        with suppress(urllib.error.URLError, TimeoutError, ConnectionError):
            server.ask("GET", "api/status")
            return
        time.sleep(0.1)
    ended = server.process.poll()
    raise JupyterDidNotStart(
        f"expected JupyterLab at {server.url} within {START_S:.0f} s, got "
        f"{'no answer' if ended is None else f'exit status {ended}'}; the last lines that it printed:\n"
        + server.printed()
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
