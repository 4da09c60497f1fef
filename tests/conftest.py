"""What holds for every test: no network, one thread, no display; tests marked `gpu` are skipped where there is none."""

import os
import socket
from collections.abc import Iterator

import pytest

# Set before any library is imported; processes that a test starts inherit it.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1", MPLBACKEND="Agg")

import torch

# The same sums in the same order whether pytest runs one worker or several, and no fight over the cores.
torch.set_num_threads(1)

LOCAL = {"127.0.0.1", "::1", "localhost"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that tries to leave this machine fails, instead of passing only where there is a network."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and isinstance(address, tuple) and address[0] not in LOCAL:
            raise AssertionError(f"a test tried to reach {address}: tests use no network")
        connect(self, address)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    """A test may set torch's number of threads; the next one starts with one again."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
