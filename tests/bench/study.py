"""Studies of real runs of the kit: SIGKILL at random moments, and two workers against one.

    python -m tests.bench.study kills --kills 30    whether the results are those of an undisturbed study
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


def without_times(path: Path) -> list[dict[str, object]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in record.items() if not name.startswith("time/")} for record in records]


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
        same = (folder / "results.csv").read_bytes() == (reference / "results.csv").read_bytes()
        runs = sorted(path.parent.name for path in reference.glob("runs/*/metrics.jsonl"))
        differ = [run for run in runs if without_times(folder / "runs" / run / "metrics.jsonl")
                  != without_times(reference / "runs" / run / "metrics.jsonl")]  # fmt: skip
        events = [json.loads(line)["event"] for path in folder.glob("runs/*/events.jsonl")
                  for line in path.read_text().splitlines()]  # fmt: skip
        print(f"study {studies}: results.csv {'identical' if same else 'DIFFERENT'}, metrics of "
              f"{len(runs) - len(differ)} of {len(runs)} runs identical; {Counter(events)}", flush=True)  # fmt: skip
    print(f"kills: {dict(done)}")


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
    parser.add_argument("what", choices=["kills", "workers"])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--pause", type=float, nargs=2, default=[3.0, 12.0], help="seconds between two kills")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"kills": kills, "workers": workers}[chosen.what](chosen, Path(folder))


if __name__ == "__main__":
    main()
