"""Actors killed at random: `python -m tests.bench.kills` trains on the embedded task while it kills trainers and
samplers, makes the run again where a trainer died, and compares the metrics with those of a run that was left alone.
"""  # fmt: skip

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from kit.config import RunConfig
from kit.distributed import ActorFailed, launch
from kit.distributed.ranks import Ranks
from kit.distributed.replicas import Replicas
from kit.objectives import DPO
from kit.run import Run
from kit.sync import Every
from kit.tasks.arithmetic import Arithmetic
from tests.conftest import untimed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each run")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed, and when")
    asked = parser.parse_args()
    chance, folder = random.Random(asked.seed), Path(tempfile.mkdtemp())
    whole = started(folder / "whole", asked.steps)
    whole.finish()
    close(whole)
    expected, killed, runs, differing = untimed(folder / "whole"), [], 0, 0
    while len(killed) < asked.kills:
        runs += 1
        out_dir = folder / f"run_{runs}"
        while (run := started(out_dir, asked.steps)).step < asked.steps:
            try:
                for record in run.steps(asked.steps):
                    if len(killed) < asked.kills and record["step"] < asked.steps - 4 and chance.random() < 0.3:
                        killed.append(kill_one(run, chance))
            except ActorFailed:
                continue
        close(run)
        same = untimed(out_dir) == expected
        differing += not same
        kinds = {kind: killed.count(kind) for kind in sorted(set(killed))}
        print(f"run {runs}: metrics {'identical' if same else 'DIFFER'}; killed so far: {kinds}", flush=True)
    return int(differing > 0)


def started(out_dir: Path, steps: int) -> Run:
    config = RunConfig(
        max_steps=steps, prompts_per_step=8, group_size=4, eval_steps=10, eval_prompts=16, eval_samples=2,
        save_steps=4, num_threads=1,
    )  # fmt: skip
    return launch(
        config, trainers=2, samplers=2, task=Arithmetic(), objective=DPO(), sync=Every(5), out_dir=out_dir,
        deadline=120.0,
    )  # fmt: skip


def close(run: Run) -> None:
    assert isinstance(run.sampler, Replicas)
    run.sampler.close()


def kill_one(run: Run, chance: random.Random) -> str:
    """A random actor's process, at a random moment of the next second, in the middle of whatever it does then."""
    assert isinstance(run.sampler, Replicas) and isinstance(run.training.trainer, Ranks)
    actors: dict[str, list[Any]] = {"sampler": run.sampler.actors, "trainer": run.training.trainer.actors}
    kind = chance.choice(sorted(actors))
    actor, seconds = chance.choice(actors[kind]), chance.random()

    def kill() -> None:
        import ray

        process: int = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    return kind


if __name__ == "__main__":
    sys.exit(main())
