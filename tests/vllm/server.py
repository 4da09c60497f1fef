"""vLLM's OpenAI-compatible server on the CPU as a process of its own, which never outlives the test."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START_S = 600.0  # on a busy machine; about 20 s on two idle cores, 15 of them computing
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its own choice needs two cores and the right to bind memory
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}
# Waits until this process has gone, however it went, or closes the pipe; then ends the server and all it has started.
WATCHER = "cat >/dev/null; kill -s CONT -- -$0; kill $0 && sleep 5; kill -s KILL -- -$0"
STOP_S = 10.0  # to end in good order


class VllmDidNotStart(RuntimeError):
    """The server ended, or was not ready in time."""


@dataclass(frozen=True)
class VllmServer:
    """A running server: `url` is an OpenAI client's base URL; the model is called `model`."""

    url: str
    model: str
    process: subprocess.Popen[bytes]
    log: Path

    def send(self, number: signal.Signals) -> None:
        """A signal to the server and all that it has started: SIGSTOP makes it hang, SIGCONT go on."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """Ends the process that clients talk to, at once; those that it started may live until the block ends."""
        self.process.kill()
        self.process.wait()

    def answered(self) -> int:
        """Requests that it has finished, by its own count."""
        lines = _get(self.url.removesuffix("/v1") + "/metrics").splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("vllm:request_success_total"))


@contextmanager
def serve(
    folder: Path, *, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[VllmServer]:
    """A server for the model in `folder`, under the folder's name, until the block ends.

    Args:
        arguments: further ones for vLLM's command line.
        environment: further variables for its process.

    Raises:
        VllmDidNotStart: with the last lines of what it printed.
    """
    port = _free_port()
    # Not `vllm serve`: that asks for the version of a package named vllm, and this one is named vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(folder), "--served-model-name", folder.name, "--dtype", "float32", "--enforce-eager"]
    with tempfile.TemporaryDirectory(prefix="vllm-") as scratch:  # short: sockets' names have room for 107 characters
        log = Path(scratch, "log")
        own = {"TMPDIR": scratch, "VLLM_CACHE_ROOT": f"{scratch}/cache", "VLLM_CONFIG_ROOT": f"{scratch}/config"}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *arguments], env={**os.environ, **ENVIRONMENT, **own, **(environment or {})}, cwd=scratch,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        watcher = subprocess.Popen(
            ["sh", "-c", WATCHER, str(process.pid)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        server = VllmServer(f"http://127.0.0.1:{port}/v1", folder.name, process, log)
        try:
            _wait_until_ready(server)
            yield server
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            _end_orphans(process.pid)
            watcher.communicate()
            process.wait()


def _wait_until_ready(server: VllmServer) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.process.poll() is None:
        with suppress(urllib.error.URLError, TimeoutError, ConnectionError):
            _get(server.url.removesuffix("/v1") + "/health")
            return
        time.sleep(0.2)
    ended = server.process.poll()
    last = server.log.read_text(errors="replace").splitlines()[-40:]
    raise VllmDidNotStart(
        f"expected vLLM to serve {server.model} at {server.url} within {START_S:.0f} s, got "
        f"{'no answer' if ended is None else f'exit status {ended}'}; the last lines that it printed:\n"
        + "\n".join(last)
    )


def _end_orphans(group: int) -> None:
    """Lets processes whose server was killed give back what they hold; the watcher ends who does not go."""
    deadline = time.monotonic() + STOP_S
    with suppress(ProcessLookupError):  # nobody is left
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)


def _get(address: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=5) as response:
        return response.read().decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
