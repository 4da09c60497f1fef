"""The run directory: append-only JSON lines that are the source of truth for every plot.

    config.json     what was asked for            metrics.jsonl    one record an optimizer step
    env.json        versions, device, revision    events.jsonl     what happened: start, resume, interrupt
    status.json     running, finished, ...        receipts.jsonl   one a sync
    rollouts/       step_NNNNNN.parquet           checkpoints/     see kit.checkpoint
    evaluations/    TASK_step_NNNNNN.parquet      the columns of both: kit.columns

Metrics carry TRL's names where the quantity is the same. `METRICS` defines each once; `*` stands for any text.
"""

import dataclasses
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kit.columns import write_columns
from kit.rewards.combine import function_name

METRICS = {
    "step": "optimizer updates applied before this record",
    "loss": "the objective's loss, nats",
    "grad_norm": "2-norm of the gradient before it is clipped",
    "learning_rate": "of this update",
    "reward": "mean total reward of the step's completions",
    "rewards/*/mean": "mean of one reward function over the completions it judged",
    "rewards/unjudged": "completions that no function could judge",
    "logged/*": "what a reward function told `log_metric`, such as the fraction of texts that a reward model cut",
    "frac_reward_zero_std": "fraction of groups whose judged rewards are all equal",
    "entropy": "policy's entropy on the completions trained on, nats/token",
    "sampler/entropy": "sampler's entropy on all its completions, nats/token",
    "completions/mean_length": "tokens, end marker included",
    "completions/clipped_ratio": "fraction of completions cut at max_completion_length",
    "rewards/chosen": "mean implicit reward beta * log(pi/pi_ref) of chosen completions, nats",
    "rewards/rejected": "the same of rejected completions, nats",
    "rewards/margins": "mean difference of the two, nats",
    "rewards/accuracies": "fraction of pairs whose chosen completion has the larger implicit reward",
    "logps/chosen": "mean log-prob of chosen completions, summed over tokens, nats",
    "logps/rejected": "the same of rejected completions, nats",
    "pairs/weight": "mean sigma(-margin), the factor on a pair's gradient",
    "nll_loss": "mean negative log-likelihood of chosen completions, nats/token",
    "policy_loss": "GRPO's loss without its KL term",
    "kl": "estimate (k3 unless told otherwise) of KL(policy || reference), nats/token",
    "clip_ratio/*": "fraction of tokens whose ratio was clipped, truncated or masked (low, high, either)",
    "offpolicy/kl": "KL(policy || sampler) on the tokens trained on, before the update, nats/token",
    "offpolicy/kl_reverse": "KL(sampler || policy) on them, nats/token",
    "offpolicy/m2": "mean squared log-ratio of policy to sampler on them, squared nats",
    "offpolicy/ess": "effective sample size of importance weights on them, as a fraction, in (0, 1]",
    "offpolicy/ratio_*": "policy to sampler probability ratio of them, before any clipping (mean, min, max)",
    "gap/*/mean_abs": "trainer's log-prob minus the sampler's, before the update: one part of it (dropout, staleness, "
    "quantization, truncation, numerics; see `kit.gap`) or the total; mean absolute value over tokens, nats",
    "gap/*/max_abs": "the same, of the token where it is largest, nats",
    "gap/*/kl": "minus its mean: of the total a k1 estimate of KL(sampler || policy); parts add up to it, nats/token",
    "gap/cut": "fraction of those tokens that the trainer's engine would have cut by top-p, although they were drawn",
    "groups/used": "groups that gave a training signal",
    "groups/ties": "groups whose judged rewards are all equal: no pair, no advantage",
    "examples/too_old": "examples dropped because the sampler lagged more than max_age updates",
    "reuse_epoch": "earlier optimizer steps on this batch of completions",
    "examples": "pairs, completions or groups trained on",
    "num_completions": "completions generated in this step; 0 where a batch is used again",
    "num_tokens": "completion tokens generated in this step; 0 where a batch is used again",
    "num_trained_tokens": "completion tokens in the examples of this update",
    "sync/version": "updates in the weights that generated this step's completions",
    "sync/staleness": "updates that the sampler lags behind the policy; 0 = on-policy",
    "sync/drift": "KL(policy || sampler) after this update, on all completions of drift_prompts groups, nats/token",
    "sync/drift_m2": "mean squared log-ratio likewise, squared nats",
    "sync/ref_version": "updates in the reference's weights",
    "eval/accuracy*": "held-out accuracy of the trained policy at temperature 1; 95 % bootstrap interval over problems",
    "eval/greedy_accuracy*": "the same with greedy decoding; Wilson interval",
    "eval/pass_at_*": "chance that at least one of k samples is right; 95 % bootstrap interval over problems",
    "eval/entropy": "entropy on fresh samples of the trained policy, nats/token",
    "eval/mean_length": "tokens of those samples, end marker included",
    "eval/reward": "mean total reward of those samples, where a task is judged rather than verified",
    "eval/win_rate*": "how often they beat the baseline's completions; 95 % bootstrap interval over prompts",
    "eval/length_controlled_win_rate": "the same, expected at the baseline's length",
    "eval/unjudged": "fraction of comparisons that the judge could not decide",
    "eval/rewards/*/mean": "mean of one reward or pointwise judging function over those samples",
    "task/*/*": "in runs of several tasks: the metric named after the task, over its completions alone",
    "time/*": "seconds of wall-clock in this step",
    "busy/sampler": "seconds that a sampler elsewhere (the slowest of several) took for this step's completions",
    "memory/peak": "bytes, so far in this process: resident on a CPU, allocated by torch on a GPU",
}

MEASURED = ("time/", "busy/", "memory/")  # the only fields that differ between two runs of one configuration on one CPU


class RunDirectoryError(RuntimeError):
    """The run directory cannot be used as asked; nothing in it was changed."""


def is_defined(metric: str) -> bool:
    """Whether `METRICS` defines this name, or that of a task's own metric without `task/{name}/`."""
    if metric.startswith("task/") and metric.count("/") >= 2:
        metric = metric.split("/", 2)[2]
    return any(fnmatch(metric, pattern) for pattern in METRICS)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line that is still being written is left out."""
    if not path.exists():
        return []
    *complete, _ = path.read_text().split("\n")
    return [json.loads(line) for line in complete]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step, so that a reader or a crash never meets half of it."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


class RunLog:
    """Writes a run directory.

    Args:
        out_dir: made if needed. If it already holds a run, its configuration must be the same one.
        config: JSON-ready description of everything that determines the run's trajectory.

    Raises:
        RunDirectoryError: if `out_dir` holds a run of another configuration; it says which fields differ.
    """

    def __init__(self, out_dir: Path, config: Mapping[str, Any]) -> None:
        self.path = Path(out_dir)
        self.path.mkdir(parents=True, exist_ok=True)
        asked = json.loads(json.dumps(config))
        if (self.path / "config.json").exists():
            found = json.loads((self.path / "config.json").read_text())
            if found != asked:
                raise RunDirectoryError(_difference(self.path, found, asked))
        else:
            if any(path.suffix != ".partial" for path in self.path.iterdir()):
                raise RunDirectoryError(
                    f"{self.path} is not empty and holds no run (no config.json): choose a new or empty out_dir"
                )
            write_json(self.path / "config.json", asked)
        for name in ("rollouts", "checkpoints", "evaluations"):
            (self.path / name).mkdir(exist_ok=True)
        for path in self.path.glob("*.jsonl"):
            _drop_torn_line(path)
        if not (self.path / "env.json").exists():  # of the first start; later ones are events
            write_json(self.path / "env.json", environment())

    def metrics(self) -> list[dict[str, Any]]:
        return read_jsonl(self.path / "metrics.jsonl")

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a step's record."""
        self._append("metrics.jsonl", record)

    def event(self, name: str, /, **details: Any) -> None:
        self._append("events.jsonl", {"event": name, "time": time.time(), **details})

    def receipt(self, receipt: Mapping[str, Any]) -> None:
        self._append("receipts.jsonl", receipt)

    def status(self, state: str, step: int) -> None:
        write_json(self.path / "status.json", {"state": state, "step": step, "heartbeat": time.time()})

    def rollouts(self, step: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """One parquet file a step."""
        self._table(self.path / "rollouts" / f"step_{step:06d}.parquet", columns)

    def completions(self, step: int, task: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """One parquet file an evaluation."""
        self._table(self.path / "evaluations" / f"{task}_step_{step:06d}.parquet", columns)

    def _table(self, path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
        temporary = path.with_suffix(".partial")
        write_columns(temporary, columns)
        os.replace(temporary, path)

    def rewind(self, step: int) -> None:
        """Cut the logs back to what was known before `step`, keeping what is cut in `discarded/`."""
        for name in ("metrics.jsonl", "receipts.jsonl"):
            path = self.path / name
            if not path.exists():
                continue
            lines = path.read_text().splitlines()
            kept = [line for line in lines if json.loads(line)["step"] < step]
            cut = lines[len(kept) :]
            if cut:
                (self.path / "discarded").mkdir(exist_ok=True)
                with (self.path / "discarded" / name).open("a") as file:
                    file.write("\n".join(cut) + "\n")
                temporary = path.with_suffix(".partial")
                temporary.write_text("".join(line + "\n" for line in kept))
                os.replace(temporary, path)

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with (self.path / name).open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")


def describe(value: Any) -> dict[str, Any]:
    """A frozen dataclass as JSON: its type and fields, a function by its name; or what it says of itself."""
    if hasattr(value, "describe"):
        return {"type": type(value).__name__} | value.describe()
    plain = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {"type": type(value).__name__} | {name: as_json(field) for name, field in plain.items()}


def as_json(value: Any) -> Any:
    """A value within another as JSON, a function by its name; of a partial, the constants too."""
    if dataclasses.is_dataclass(value) or hasattr(value, "describe"):
        return describe(value)
    if isinstance(value, tuple):
        return [as_json(item) for item in value]
    return _function(value) if callable(value) else value


def _function(function: Any) -> Any:
    if isinstance(function, partial):
        return {"function": _function(function.func), "args": list(function.args), **function.keywords}
    return function_name(function)


class Clock:
    """Wall-clock of the parts of a step, as `time/*` metrics in seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> dict[str, float]:
        """Seconds since the lap before, kept under `time/{name}` and returned."""
        now = time.perf_counter()
        lap = {f"time/{name}": now - self._last}
        self.laps |= lap
        self._last = now
        return lap


def environment() -> dict[str, Any]:
    """Versions, machine and source revision, for the reader of a run; never part of what must match."""
    packages = ("torch", "transformers", "math-verify", "reasoning-gym")
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "git_revision": git.stdout.strip() or None,
        "packages": {name: version(name) for name in packages},
    }


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that a killed process left without its end, so that the next one does not join it."""
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def _difference(path: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    fields = sorted(key for key in set(found) | set(asked) if found.get(key) != asked.get(key))
    changes = "; ".join(f"{key}: there {found.get(key)!r}, asked {asked.get(key)!r}" for key in fields)
    return f"{path} holds a run of another configuration ({changes}). Nothing was changed: choose another out_dir."
