"""SIGKILL of launcher, run process or kernel at random moments: the results are those of an undisturbed study."""

import json
import random
from pathlib import Path

import pytest

from tests.counting_study import starts, write_study
from tests.study_kills import finish_despite_kills, launch

TWELVE = (
    "notebook: {notebook}\nshared: {steps: 20, pause: 0.2}\narms:\n  low: {rate: 1.0}\n  high: {rate: 2.0}\n"
    "  first: {save_policy: true}\n  second: {after: first}\nseeds: [0, 1, 2]\n"
)


def undisturbed(folder: Path) -> bytes:
    """The same study with nobody in its way; a pause has no influence on what comes out."""
    write_study(folder, TWELVE.replace("0.2", "0.0"))
    assert launch(folder, 2).wait(timeout=300) == 0
    return (folder / "results.csv").read_bytes()


@pytest.mark.slow
def test_kills_change_nothing(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "killed", TWELVE)
    kills = finish_despite_kills(folder, 6, random.Random(0), pause=(2.0, 5.0))
    assert kills.total() >= 4, f"only {kills} while it ran: the study is too short for this test"
    assert (folder / "results.csv").read_bytes() == undisturbed(tmp_path / "undisturbed")
    for path in folder.glob("runs/*/metrics.jsonl"):
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(20))
    assert any(len(starts(folder, path.name)) > 1 for path in folder.glob("runs/*_seed?"))
