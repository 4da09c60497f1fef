"""What the sync interval s costs: the step with a sampler that is waited for, and with one in another process.

Runs of every s, blocking and overlapped, take their steps in turns. `busy` is what the sampler's process needed for a
step's completions: where it is less than a step, that process idles for the rest of it. Offline, `depth` batches of a
turn were drawn during the turns of others, which flatters it.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.measure import Row, in_turns, parser, ratios, report
from tests.bench.scaling import CoinToss

INTERVALS = (1, 2, 5, 10, 0)  # 0 is offline
NEVER = 10**9  # steps
PARTS = ("generate", "train", "sync")


def make_run(arguments: argparse.Namespace, folder: Path, interval: int, overlapped: bool) -> Any:
    """DPO without evaluations or checkpoints, where every prompt yields a pair."""
    from kit.config import RunConfig, Sampling
    from kit.objectives import DPO
    from kit.run import Run
    from kit.samplers import Overlapped, TransformersSampler
    from kit.sync import Every, Never

    config = RunConfig(
        model_name_or_path=arguments.model, device=arguments.device, bf16=arguments.device != "cpu",
        prompts_per_step=arguments.prompts, group_size=8, max_steps=NEVER, eval_steps=NEVER, save_steps=NEVER,
        eval_prompts=1, eval_samples=1, learning_rate=1e-6, num_threads=arguments.threads,
        sampling=Sampling(max_completion_length=arguments.tokens),
    )  # fmt: skip
    sync = Every(interval) if interval else Never()
    sampler = partial(Overlapped, depth=arguments.depth) if overlapped else TransformersSampler
    return Run(config, task=CoinToss(), objective=DPO(), sync=sync, sampler=sampler, out_dir=folder)


def measure(arguments: argparse.Namespace) -> list[Row]:
    from kit.samplers import Overlapped

    with tempfile.TemporaryDirectory() as folder:
        runs = {
            f"s={interval or 'never'}, {'overlapped' if overlapped else 'blocking'}": make_run(
                arguments, Path(folder, f"{interval}-{overlapped}"), interval, overlapped
            )
            for interval in arguments.intervals
            for overlapped in (False, True)
        }
        times = in_turns(
            {name: lambda run=run: list(run.steps(arguments.steps)) for name, run in runs.items()}, arguments.repeats
        )
        found: list[Row] = []
        for interval in arguments.intervals:
            names = [f"s={interval or 'never'}, {how}" for how in ("blocking", "overlapped")]
            for name in names:
                found.append(Row(name, "s/step", tuple(t / arguments.steps for t in times[name])))
                records = [record for record in runs[name].log.metrics() if "time/train" in record][arguments.steps :]
                for part in [f"time/{part}" for part in PARTS] + ["busy/sampler"]:
                    if part in records[0]:
                        found.append(Row(f"    {part}", "s/step", (statistics.mean(r[part] for r in records),)))
                if "busy/sampler" in records[0]:
                    found.append(Row("    kit.latency says", "s/step", (computed(records, interval, arguments.depth),)))
            found.append(ratios(f"s={interval or 'never'}: blocking / overlapped", *(times[name] for name in names)))
        for run in runs.values():
            if isinstance(run.sampler, Overlapped):
                run.sampler.close()
        return found


def computed(records: list[dict[str, float]], interval: int, depth: int) -> float:
    """What the latency model makes of an overlapped run's own parts, per step of a long run."""
    from kit.latency import Parts, elapsed

    mean = {part: statistics.mean(r[part] for r in records) for part in ("time/sync", "time/generate", "busy/sampler")}
    whole = statistics.mean(sum(v for name, v in r.items() if name.startswith("time/")) for r in records)
    train = whole - mean["time/sync"] - mean["time/generate"]  # scoring and selecting too
    parts = Parts(mean["busy/sampler"], train, mean["time/sync"] * (interval or 0))
    return elapsed(parts, 1000, interval or None, depth=depth).seconds / 1000


if __name__ == "__main__":
    options = parser(__doc__)
    options.set_defaults(steps=10)  # a multiple of every s, so that a turn holds the share of syncs of a long run
    options.add_argument("--intervals", type=int, nargs="+", default=INTERVALS, help="s; 0 is offline")
    options.add_argument("--device", default="cpu")
    options.add_argument("--depth", type=int, default=2)
    options.add_argument("--prompts", type=int, default=32, help="a step, 8 completions each")
    options.add_argument("--tokens", type=int, default=48, help="a completion at most")
    arguments = options.parse_args()
    report(measure(arguments), arguments.json)
