"""Servers that the tests of this folder share; `make test-vllm` runs them, in an environment that has vLLM."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.models import rule_model, untrained_model
from tests.vllm.server import VllmServer, serve


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="session")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """Serves `rule_model`."""
    with serve(rule_model(tmp_path_factory.mktemp("models") / "rules")) as server:
        yield server


@pytest.fixture
def untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmServer]:
    """Serves `untrained_model` to whoever sends the key in the variable JUDGE_KEY, until the test ends or kills it."""
    monkeypatch.setenv("JUDGE_KEY", "sk-test-1234")
    with serve(untrained_model(tmp_path / "untrained"), environment={"VLLM_API_KEY": "sk-test-1234"}) as server:
        yield server
