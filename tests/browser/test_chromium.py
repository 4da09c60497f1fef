"""Where the browser comes from. A script stands for apt-get; the real one runs where `make test-browser` needs it."""

import os
from pathlib import Path

import pytest

from tests.browser import chromium


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, empty; the user is root."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_without_a_browser_it_says_what_to_install(bare: Path) -> None:
    chromium.install()  # no apt-get here
    with pytest.raises(chromium.NoChromium, match=r"found none.*sudo apt-get install chromium"):
        chromium.path()


def test_root_gets_debians_package(bare: Path) -> None:
    script(
        bare / "apt-get",
        'echo "$@" >> "$0.log"; [ "$1" = update ] || { : > "${0%/*}/chromium"; /bin/chmod +x "${0%/*}/chromium"; }',
    )
    chromium.install()
    assert chromium.path() == str(bare / "chromium")
    said = ["update -qq", "install -qq -y --no-install-recommends chromium"]
    assert (bare / "apt-get.log").read_text().splitlines() == said
    chromium.install()
    assert (bare / "apt-get.log").read_text().splitlines() == said  # it is there: nothing more to do


def test_others_do_not_try(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    script(bare / "apt-get", 'echo tried > "$0.log"')
    chromium.install()
    assert not (bare / "apt-get.log").exists()


def test_what_apt_get_says_is_passed_on(bare: Path) -> None:
    script(bare / "apt-get", "echo no such mirror >&2; exit 100")
    with pytest.raises(chromium.NoChromium, match=r"(?s)`apt-get update -qq` failed.*no such mirror"):
        chromium.install()
