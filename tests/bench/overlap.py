"""What the sync interval s costs: the step with a sampler that is waited for, and with one in another process.

Runs of every s, blocking and overlapped, take their steps in turns. `busy` is what the sampler's process needed for a
step's completions: for the rest of it that process idles, as the trainer does while it waits (`generate`) or syncs.
Offline, `depth` batches of a turn were drawn during the turns of others, which flatters it.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.measure import Row, in_turns, parser, ratios, report
from tests.bench.scaling import CoinToss

INTERVALS = (1, 2, 5, 10, 50, 0)  # 0 is offline
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
                found += details(runs[name], arguments.steps, interval, arguments.depth)
            found.append(ratios(f"s={interval or 'never'}: blocking / overlapped", *(times[name] for name in names)))
        for run in runs.values():
            if isinstance(run.sampler, Overlapped):
                run.sampler.close()
        return found


def details(run: Any, warm: int, interval: int, depth: int) -> list[Row]:
    """Means over the steps after the first `warm`: where the time goes, who idles, what is drawn, computed and sent."""
    from kit.costs import Costs

    records = [record for record in run.log.metrics() if "time/train" in record][warm:]
    names = [f"time/{part}" for part in PARTS] + ["busy/sampler"] * ("busy/sampler" in records[0])
    mean = {name: statistics.mean(record[name] for record in records) for name in names}
    whole = statistics.mean(sum(v for name, v in r.items() if name.startswith("time/")) for r in records)
    drawing = mean.get("busy/sampler", mean["time/generate"])
    found = {name: ("s/step", seconds) for name, seconds in mean.items()}
    found["the sampler idles"] = ("of the time", 1 - drawing / whole)
    found["the trainer idles"] = ("of the time", (mean["time/generate"] + mean["time/sync"]) / whole)
    costs, steps = Costs.read(run.log.path), run.step
    for what, spent in [("tokens", costs.tokens), ("FLOPs", costs.flops), ("bytes", costs.sync_bytes)]:
        assert spent is not None
        found[f"{what} sent" if what == "bytes" else what] = ("a step", spent / steps)
    if "busy/sampler" in mean:
        train = whole - mean["time/sync"] - mean["time/generate"]  # scoring and selecting too
        found["kit.latency says"] = ("s/step", computed(drawing, train, mean["time/sync"], interval, depth))
    return [Row(f"    {name}", unit, (value,)) for name, (unit, value) in found.items()]


def computed(draw: float, train: float, sync: float, interval: int, depth: int) -> float:
    """What the latency model makes of an overlapped run's own parts, per step of a long run."""
    from kit.latency import Parts, elapsed

    parts = Parts(draw, train, sync * (interval or 0))
    return elapsed(parts, 1000, interval or None, depth=depth).seconds / 1000


if __name__ == "__main__":
    options = parser(__doc__)
    options.set_defaults(steps=50)  # a multiple of every s, so that a turn holds the share of syncs of a long run
    options.add_argument("--intervals", type=int, nargs="+", default=INTERVALS, help="s; 0 is offline")
    options.add_argument("--device", default="cpu")
    options.add_argument("--depth", type=int, default=2)
    options.add_argument("--prompts", type=int, default=32, help="a step, 8 completions each")
    options.add_argument("--tokens", type=int, default=48, help="a completion at most")
    arguments = options.parse_args()
    report(measure(arguments), arguments.json)
