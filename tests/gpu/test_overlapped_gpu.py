"""Generation in another process that shares the GPU's memory: the same run, and a new process where one dies."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kit.config import Lora
from kit.runlog import read_jsonl
from kit.samplers import Overlapped
from kit.sync import Every
from tests.conftest import tiny_run, untimed

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
CASES: dict[str, dict[str, Any]] = {
    "all weights": {},
    "all weights, bfloat16": {"bf16": True},
    "adapters, bfloat16": {"lora": Lora(lora_r=4), "bf16": True},
}


@pytest.mark.parametrize("case", CASES)
def test_the_run_is_that_of_a_blocking_sampler_even_if_the_process_dies(
    case: str, tiny_folder: Path, tmp_path: Path
) -> None:
    changes = CASES[case] | {"device": "cuda", "sync": Every(4)}
    blocking = tiny_run(tiny_folder, tmp_path / "blocking", **changes)
    blocking.finish()
    run = tiny_run(tiny_folder, tmp_path / "overlapped", sampler=partial(Overlapped, deadline=120.0), **changes)
    assert isinstance(run.sampler, Overlapped)
    for record in run.steps(12):
        if record["step"] == 5:
            os.kill(run.sampler.process_id(), signal.SIGKILL)
    run.sampler.close()
    assert untimed(run.log.path) == untimed(blocking.log.path)
    receipts = read_jsonl(run.log.path / "receipts.jsonl")
    assert len(receipts) == 2 and all(receipt["digest"] == receipt["sampler_digest"] for receipt in receipts)
    assert [e["event"] for e in read_jsonl(run.log.path / "events.jsonl")].count("sampler") == 1
