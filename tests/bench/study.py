"""Studies of real runs of the kit: SIGKILL at random moments, and two workers against one.

    python -m tests.bench.study kills --kills 30    whether the results are those of an undisturbed study
    python -m tests.bench.study nodes --kills 10    the same on a Ray cluster, whose nodes are killed and replaced
    python -m tests.bench.study workers --turns 3   seconds with one worker and with two, alternately, and their ratio

Each on 12 runs of the embedded model, in a temporary folder. Nothing here passes or fails.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kit.runlog import MEASURED
from kit.study.execute import run_study
from kit.study.file import read_study
from kit.study.on_ray import RayTasks
from kit.study.results import collect
from tests.study_kills import ROOT, finish_despite_kills, launch

STUDY = """notebook: {notebook}
shared: {{max_steps: {steps}, prompts_per_step: 4, eval_prompts: 16, eval_samples: 2, eval_steps: 4, save_steps: 2}}
arms:
  dpo_offline: {{objective: dpo, sync_interval: null}}
  dpo_s1: {{objective: dpo, sync_interval: 1}}
  first: {{save_policy: true}}
  second: {{after: first}}
seeds: [0, 1, 2]
resources: {{threads: 1}}
"""


def write_study(folder: Path, steps: int) -> Path:
    folder.mkdir()
    notebook = ROOT / "notebooks" / "05_one_run.ipynb"
    (folder / "study.yaml").write_text(STUDY.format(notebook=notebook, steps=steps))
    return folder


def undisturbed(folder: Path, workers: int) -> float:
    """Seconds that the study takes."""
    began = time.perf_counter()
    if launch(folder, workers).wait() != 0:
        raise RuntimeError((folder / "said.txt").read_text())
    return time.perf_counter() - began


def what_counts(path: Path) -> list[dict[str, object]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in record.items() if not name.startswith(MEASURED)} for record in records]


def kills(chosen: argparse.Namespace, place: Path) -> None:
    """As many studies as it takes to place the kills; each is compared with one that nobody disturbed."""
    reference = write_study(place / "undisturbed", chosen.steps)
    print(f"undisturbed: {undisturbed(reference, 2):.0f} s", flush=True)
    done, generator, studies = Counter(), random.Random(chosen.seed), 0
    while done.total() < chosen.kills:
        folder = write_study(place / f"killed{studies}", chosen.steps)
        done += finish_despite_kills(folder, chosen.kills - done.total(), generator, pause=tuple(chosen.pause),
                                     say=lambda text: print(text, flush=True))  # fmt: skip
        studies += 1
        compare(folder, reference)
    print(f"kills: {dict(done)}")


def compare(folder: Path, reference: Path) -> None:
    """Print whether a study came out as another."""
    same = (folder / "results.csv").read_bytes() == (reference / "results.csv").read_bytes()
    runs = sorted(path.parent.name for path in reference.glob("runs/*/metrics.jsonl"))
    differ = [run for run in runs if what_counts(folder / "runs" / run / "metrics.jsonl")
              != what_counts(reference / "runs" / run / "metrics.jsonl")]  # fmt: skip
    events = [json.loads(line)["event"] for path in folder.glob("runs/*/events.jsonl")
              for line in path.read_text().splitlines()]  # fmt: skip
    print(f"{folder.name}: results.csv {'identical' if same else 'DIFFERENT'}, metrics of "
          f"{len(runs) - len(differ)} of {len(runs)} runs identical; {dict(Counter(events))}", flush=True)  # fmt: skip


def nodes(chosen: argparse.Namespace, place: Path) -> None:
    """As `kills`, of the nodes of a cluster on this machine: a head, and two nodes of one CPU."""
    import ray
    from ray.cluster_utils import Cluster

    reference = write_study(place / "undisturbed", chosen.steps)
    print(f"undisturbed, without Ray: {undisturbed(reference, 2):.0f} s", flush=True)
    small: dict[str, Any] = {"object_store_memory": 80 * 2**20}
    cluster: Any = Cluster(initialize_head=True, head_node_args=small | {"num_cpus": 0})
    alive = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
    cluster.wait_for_nodes()
    executor, generator = RayTasks(cluster.address, 2), random.Random(chosen.seed)
    done, due = 0, time.monotonic() + generator.uniform(*chosen.pause)

    def watch(running: Any, outcome: Any) -> None:
        nonlocal done, due
        if running and done < chosen.kills and time.monotonic() > due:
            cluster.remove_node(alive.pop(generator.randrange(2)), allow_graceful=False)
            alive.append(cluster.add_node(num_cpus=1, **small))
            done, due = done + 1, time.monotonic() + generator.uniform(*chosen.pause)
            print(f"killed a node, {done} of {chosen.kills}", flush=True)

    studies = 0
    while done < chosen.kills:
        study = read_study(write_study(place / f"nodes{studies}", chosen.steps))
        studies += 1
        while (outcome := run_study(study, executor, watch)).status:
            print(f"again, after {outcome.failed}", flush=True)
        collect(study)
        compare(study.folder, reference)
    ray.shutdown()
    cluster.shutdown()


def workers(chosen: argparse.Namespace, place: Path) -> None:
    """Alternately, so that a busy machine is as busy for both."""
    ratios = []
    for turn in range(chosen.turns):
        one, two = (undisturbed(write_study(place / f"{turn}_{count}", chosen.steps), count) for count in (1, 2))
        ratios.append(one / two)
        print(f"one worker {one:.0f} s, two workers {two:.0f} s: {one / two:.2f} times as fast", flush=True)
    print(f"median {statistics.median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "nodes", "workers"])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--pause", type=float, nargs=2, default=[3.0, 12.0], help="seconds between two kills")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"kills": kills, "nodes": nodes, "workers": workers}[chosen.what](chosen, Path(folder))


if __name__ == "__main__":
    main()
