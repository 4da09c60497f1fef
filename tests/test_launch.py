"""Runs on several processes of this machine: what one process computes, whatever dies."""

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from kit.config import Lora, RunConfig, Sampling
from kit.distributed import ActorFailed, launch
from kit.distributed.cluster import Cluster, require_same_versions, versions
from kit.distributed.ranks import Ranks
from kit.distributed.replicas import Replicas
from kit.models.weights import digest, weights_of
from kit.objectives import DPO, GRPO
from kit.ray_address import inherited
from kit.run import Run
from kit.runlog import read_jsonl
from kit.samplers import SyncError
from kit.sync import Every
from tests.conftest import TinyTask, happened, tiny_run, untimed

pytestmark = pytest.mark.slow  # every process imports torch and transformers
SIZES: dict[str, Any] = {
    "prompts_per_step": 5, "group_size": 4, "max_steps": 8, "eval_steps": 4, "eval_prompts": 6, "eval_samples": 2,
    "save_steps": 3, "num_threads": 1, "learning_rate": 1e-3, "micro_batch_size": 4,
}  # fmt: skip
SAMPLING = Sampling(max_completion_length=5)
DEADLINE_S = 60.0
STALL_S = 25.0  # more than a process takes to start


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """One for all of these runs: `launch` takes what is there."""
    ray.init(
        address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        runtime_env=inherited(),
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def launched(tiny_folder: Path) -> Iterator[Callable[..., Run]]:
    """Makes such runs, and ends their processes."""
    made: list[Run] = []

    def make(out_dir: Path, **changes: Any) -> Run:
        arguments: dict[str, Any] = {"trainers": 2, "samplers": 2, "objective": DPO(), "sync": Every(3)}
        arguments |= {"deadline": DEADLINE_S, "task": TinyTask(), "ref_sync": Every(2)}
        arguments |= {name: changes.pop(name) for name in arguments.keys() & changes.keys()}
        config = RunConfig(model_name_or_path=str(tiny_folder), sampling=SAMPLING, **(SIZES | changes))
        made.append(launch(config, out_dir=out_dir, **arguments))
        return made[-1]

    yield make
    for run in made:
        replicas_of(run).close()


def replicas_of(run: Run) -> Replicas:
    assert isinstance(run.sampler, Replicas)
    return run.sampler


def ranks_of(run: Run) -> Ranks:
    assert isinstance(run.training.trainer, Ranks)
    return run.training.trainer


def process_of(actor: Any) -> int:
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))


def incidents(run: Run) -> list[str]:
    return [e["incident"] for e in read_jsonl(run.log.path / "events.jsonl") if e["event"] == "sampler"]


@pytest.fixture(scope="module")
def undisturbed(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The metrics of the run that the tests below disturb."""
    config = RunConfig(model_name_or_path=str(tiny_folder), sampling=SAMPLING, **SIZES)
    out_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    run = launch(
        config, trainers=2, samplers=2, objective=DPO(), sync=Every(3), ref_sync=Every(2), deadline=DEADLINE_S,
        task=TinyTask(), out_dir=out_dir,
    )  # fmt: skip
    run.finish()
    assert incidents(run) == []
    replicas_of(run).close()
    return untimed(out_dir)


CASES: dict[str, dict[str, Any]] = {
    "all weights": {},
    "adapters, one trainer, one at a time": {
        "trainers": 1, "objective": GRPO(kl_coef=0.1), "lora": Lora(lora_r=4), "generation_batch_size": 8,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_run_is_that_of_one_process(
    case: str, launched: Callable[..., Run], tiny_folder: Path, tmp_path: Path
) -> None:
    run = launched(tmp_path / "launched", **CASES[case])
    run.finish()
    changes = {name: value for name, value in CASES[case].items() if name not in ("trainers", "samplers")}
    alone = tiny_run(
        tiny_folder,
        tmp_path / "alone",
        **({"sync": Every(3), "ref_sync": Every(2), "sampling": SAMPLING} | SIZES | changes),
    )
    alone.finish()
    drop = ("time/", "busy/", "memory/")
    found, expected = (
        [{k: v for k, v in record.items() if not k.startswith(drop)} for record in some.log.metrics()]
        for some in (run, alone)
    )
    assert found == [pytest.approx(record, rel=1e-3, abs=1e-5) for record in expected]
    receipts = read_jsonl(run.log.path / "receipts.jsonl")
    assert [len(receipt["samplers"]) for receipt in receipts] == [2, 2]
    assert all(each["sampler_digest"] == r["digest"] for r in receipts for each in r["samplers"])
    assert digest(weights_of(run.policy)) == digest(ranks_of(run).parts()["policy"])  # `finish` ends with a checkpoint
    assert happened(run.log.path) == ["start", "launch"]


def without_its_last_bit(sampler: Any) -> None:
    """From now on this sampler gets one number of one tensor wrong after every copy, and its own receipt says so."""
    sync = sampler._sampler.sync
    sampler._sampler.sync = lambda *given, **named: dataclasses.replace(sync(*given, **named), sampler_digest="0" * 16)


def test_a_sync_that_does_not_reach_one_sampler_stops_the_run(launched: Callable[..., Run], tmp_path: Path) -> None:
    run = launched(tmp_path / "run", trainers=1)
    replicas_of(run).actors[1].__ray_call__.remote(without_its_last_bit)
    with pytest.raises(SyncError, match="the sampler's to 0000000000000000"):
        run.finish()
    assert run.step == 3 and happened(tmp_path / "run") == ["start", "launch", "error"]


def test_samplers_that_die_or_stall_are_replaced_and_nothing_changes(
    launched: Callable[..., Run], undisturbed: list[str], tmp_path: Path
) -> None:
    run = launched(tmp_path / "run", deadline=STALL_S)
    actors = replicas_of(run).actors
    for record in run.steps(8):
        if record["step"] == 1:
            os.kill(process_of(actors[1]), signal.SIGKILL)
        if record["step"] == 3:  # with what it was drawing ahead
            actors[0].__ray_call__.remote(lambda self: os._exit(1))
        if record["step"] == 5:  # a sync and an evaluation follow
            os.kill(process_of(actors[1]), signal.SIGSTOP)
    assert untimed(run.log.path) == undisturbed
    found = incidents(run)
    assert [text.partition(":")[0] for text in found] == ["sampler 1", "sampler 0", "sampler 1"]
    assert "died" in found[0] and "died" in found[1] and f"within {STALL_S:g} s" in found[2]


def test_a_rank_that_dies_or_stalls_ends_the_run_which_goes_on_from_its_checkpoint(
    launched: Callable[..., Run], undisturbed: list[str], tmp_path: Path
) -> None:
    for what, step in [(signal.SIGSTOP, 4), (signal.SIGKILL, 6)]:
        run = launched(tmp_path / "run", deadline=STALL_S)
        with pytest.raises(ActorFailed, match="make the run again, with any number of trainers") as caught:
            for record in run.steps(8):
                if record["step"] == step:
                    os.kill(process_of(ranks_of(run).actors[1]), what)
        assert any("go on from its last checkpoint" in note for note in caught.value.__notes__)
    run = launched(tmp_path / "run")
    assert run.step == 6
    run.listeners.append(lambda record: signal.raise_signal(signal.SIGINT) if record["step"] == 6 else None)
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    run.finish()
    assert untimed(tmp_path / "run") == undisturbed
    begun = ["start", "launch", "error", "resume", "launch", "error", "resume", "launch", "interrupt"]
    assert happened(tmp_path / "run") == begun


def test_what_cannot_run_on_several_processes_is_refused(launched: Callable[..., Run], tmp_path: Path) -> None:
    for changes, message in [
        ({"trainers": 0}, "trainers >= 1"),
        ({"samplers": 0}, "samplers >= 1"),
        ({"deadline": 0.0}, "deadline > 0"),
        ({"device": "cuda:1"}, "device cpu or cuda"),
        ({"optim": "adamw_bnb_8bit"}, "optim='adamw_bnb_8bit' works in one process only"),
        ({"quantization": "nf4", "lora": Lora()}, "quantization='nf4' works in one process only"),
        ({"gap_steps": 1}, "gap_steps=1 works in one process only"),
    ]:
        with pytest.raises(ValueError, match=message):
            launched(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_without_room_it_says_what_is_missing(launched: Callable[..., Run], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("kit.distributed.cluster.ROOM_S", 0.0)
    with pytest.raises(RuntimeError, match=r"needs 22 GPUs, \d+ free of 16 CPUs and"):
        launched(tmp_path / "run", trainers=20, device="cuda")


def test_without_a_cluster_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConnectionError, match=r"cluster's head at 127\.0\.0\.1:1, came"):
        Cluster("127.0.0.1:1", cpus=1, gpus=0, deadline=1.0)


def test_another_machine_must_have_the_same_versions() -> None:
    require_same_versions(versions(), "x")
    with pytest.raises(RuntimeError, match=r"the machine of sampler 1 has other versions .*: torch 1\.0 there, 2"):
        require_same_versions(versions() | {"torch": "1.0"}, "the machine of sampler 1")


def test_a_prompt_that_is_too_long_is_refused_as_in_one_process(launched: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must fit into the model"):
        launched(tmp_path / "run", trainers=1, samplers=1, task=TinyTask(terms=40))
