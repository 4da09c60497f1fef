"""What a dashboard shows: panels with their metrics, unit, how to read them, and the doctor's findings they illustrate.

The text is for people who look at such a curve for the first time; `kit.runlog.METRICS` defines each metric.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kit.printable import printable

TASK = "task/"  # in runs of several tasks: task/{name}/{metric}


@dataclass(frozen=True)
class Panel:
    """One small chart.

    Attributes:
        lines: (metric, label) of each curve that it can have; the place is the colour, so that it means the same in all
            panels: the policy's own first, the sampler's second, or chosen before rejected.
        reading: one or two sentences for a first reader.
        findings: names of the doctor's rules that are marked here.
        has_zero: whether the y axis starts at 0.
        is_stacked: whether the lines are parts of a whole, drawn on top of each other.
        has_syncs: whether copies of the policy into the sampler are marked.
    """

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    reading: str
    findings: tuple[str, ...] = ()
    has_zero: bool = False
    is_stacked: bool = False
    has_syncs: bool = False


PANELS = (
    Panel(
        "Held-out score", "fraction",
        (("eval/accuracy", "sampled accuracy"), ("eval/greedy_accuracy", "greedy accuracy"),
         ("eval/win_rate", "win rate"), ("eval/length_controlled_win_rate", "length-controlled win rate")),
        "What the run is for, on problems that it does not train on. The band is a 95 % interval: "
        "a change that stays within it may be chance.",
        ("evaluation_falls", "reward_hacking"),
    ),
    Panel(
        "Reward", "the task's reward",
        (("eval/reward", "policy, fresh samples"), ("reward", "sampler")),
        "Mean over the completions of a step, each step from other prompts: look at the trend. Reward up while the "
        "held-out score goes down means that the reward is being gamed.",
        ("constant_reward", "verifier_always_zero", "nothing_judged", "mostly_unjudged", "function_abstains",
         "reward_hacking"),
    ),
    Panel(
        "Entropy", "nats per token",
        (("eval/entropy", "policy, fresh samples"), ("sampler/entropy", "sampler"), ("entropy", "on trained tokens")),
        "How undecided the model is. A slow fall is learning; a fall to a few per cent of the start is collapse: all "
        "samples of a prompt become the same, and there is nothing left to compare.",
        ("entropy_collapse",),
        has_zero=True,
    ),
    Panel(
        "Completion length", "tokens",
        (("eval/mean_length", "policy, fresh samples"), ("completions/mean_length", "sampler")),
        "Steady growth together with reward often means that length is being paid for; near the limit, cut completions "
        "get no reward.",
        ("length_collapse", "length_runaway", "truncated", "never_ends"),
        has_zero=True,
    ),
    Panel(
        "Staleness", "optimizer steps",
        (("sync/staleness", "sampler behind policy"),),
        "Updates since the sampler got the policy's weights. Flat at 0 is online, a saw of height s - 1 semi-online, "
        "a ramp that never comes down offline.",
        ("sampler_stale",),
        has_zero=True, has_syncs=True,
    ),
    Panel(
        "Drift from the sampler", "nats per token",
        (("offpolicy/kl", "on trained tokens"), ("sync/drift", "on all tokens")),
        "KL(policy || sampler): how far the policy has moved from the weights that wrote its data. Back to about 0 "
        "after each sync; the higher between two, the more off-policy the step.",
        ("far_off_policy", "sampler_stale"),
        has_zero=True, has_syncs=True,
    ),
    Panel(
        "Groups with a signal", "groups a step",
        (("groups/used", "used"), ("groups/ties", "ties")),
        "A group whose completions all get the same reward teaches nothing. Ties grow as the task gets solved, or when "
        "samples become alike; too many mean too easy or too hard prompts.",
        ("no_contrast",),
        has_zero=True,
    ),
    Panel(
        "Log-probs of pairs", "nats, summed over tokens",
        (("logps/chosen", "chosen"), ("logps/rejected", "rejected")),
        "In DPO the chosen log-prob falls in healthy runs as well: what matters is that rejected falls faster. "
        "If chosen falls without end, add nll_coef.",
        ("chosen_displaced",),
    ),
    Panel(
        "Implicit rewards", "nats",
        (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected"), ("rewards/margins", "margin")),
        "beta * log(pi / pi_ref) of both, and their difference: the margin starts at 0 and should grow. Without bound "
        "on the same pairs, it is overfitting.",
        ("chosen_displaced",),
    ),
    Panel(
        "Divergence from the reference", "nats per token",
        (("kl", "KL(policy || reference)"),),
        "How far the policy has gone from where it started. It should grow slowly; a jump is a step too far.",
        has_zero=True,
    ),
    Panel(
        "Clipped ratios", "fraction of tokens",
        (("clip_ratio/region_mean", "either"), ("clip_ratio/low_mean", "too small"),
         ("clip_ratio/high_mean", "too large")),
        "Tokens on which the clip was at work. Always 0 where data is used once and the sampler is fresh; "
        "a large fraction means that most of the batch no longer pulls.",
        has_zero=True,
    ),
    Panel(
        "Gradient norm", "before clipping",
        (("grad_norm", "2-norm"),),
        "Spikes are normal, an upward trend is not. Falling to 0 means that no pair or advantage is left, "
        "not that training is done.",
        ("non_finite", "updates_too_small"),
        has_zero=True,
    ),
    Panel(
        "Loss", "nats",
        (("loss", "loss"), ("nll_loss", "NLL of chosen")),
        "No measure of progress. DPO's starts at log 2 = 0.69; GRPO's stays around 0 by construction. "
        "Read score and margin instead.",
        ("non_finite",),
    ),
    Panel(
        "Time of a step", "s, evaluations apart",
        (("time/generate", "generate"), ("time/train", "train"), ("time/reward", "reward"), ("time/sync", "sync"),
         ("time/select", "select"), ("time/gap", "gap"), ("time/log", "log")),
        "Where the wall-clock goes. Generation usually leads; a rising total usually means longer completions.",
        has_zero=True, is_stacked=True,
    ),
)  # fmt: skip
DRAWN = {"sync/version"}.union(*(dict(panel.lines) for panel in PANELS))  # all that a dashboard looks at


@dataclass(frozen=True)
class Line:
    """One curve of a panel: where its numbers are, its place among the colours and among the line styles."""

    metric: str
    label: str
    colour: int
    style: int = 0


@dataclass(frozen=True)
class Chart:
    """A panel as this run has it."""

    panel: Panel
    lines: tuple[Line, ...]

    def as_json(self) -> dict[str, Any]:
        """For the browser."""
        panel = self.panel
        plain = {"title": panel.title, "unit": panel.unit, "reading": panel.reading, "findings": list(panel.findings)}
        plain |= {"zero": panel.has_zero, "stacked": panel.is_stacked, "syncs": panel.has_syncs}
        lines = [{"metric": x.metric, "label": x.label, "colour": x.colour, "style": x.style} for x in self.lines]
        return plain | {"lines": lines}


def split_task(metric: str) -> tuple[str, str]:
    """(task, the metric's own name); the task is empty for a metric of the whole run.

    >>> split_task("task/chat/eval/win_rate"), split_task("reward")
    (('chat', 'eval/win_rate'), ('', 'reward'))
    """
    if metric.startswith(TASK) and metric.count("/") >= 2:
        _, task, name = metric.split("/", 2)
        return task, name
    return "", metric


def is_drawn(metric: str) -> bool:
    """Whether some panel shows this metric, or an interval's end of it."""
    return split_task(metric)[1].removesuffix("_low").removesuffix("_high") in DRAWN


def charts(metrics: Iterable[str]) -> list[Chart]:
    """The panels that a run with these metrics has. Colours tell metrics apart, or tasks where there are several.

    >>> [(chart.panel.title, [line.label for line in chart.lines]) for chart in charts(["reward", "groups/ties"])]
    [('Reward', ['sampler']), ('Groups with a signal', ['ties'])]
    """
    names = sorted(metrics)
    tasks = sorted({task for task, _ in map(split_task, names) if task})
    found = [Chart(panel, _lines(panel, names, tasks)) for panel in PANELS]
    return [chart for chart in found if chart.lines]


def _lines(panel: Panel, names: Sequence[str], tasks: Sequence[str]) -> tuple[Line, ...]:
    found: list[Line] = []
    own = {split_task(name)[1] for name in names}
    kinds = [metric for metric, _ in panel.lines if metric in own]
    for place, (metric, label) in enumerate(panel.lines):
        if metric in names:
            found.append(Line(metric, label, place))
        for number, task in enumerate(tasks):
            if f"{TASK}{task}/{metric}" in names:
                title = printable(task if len(kinds) == 1 else f"{task}: {label}")
                found.append(Line(f"{TASK}{task}/{metric}", title, number, kinds.index(metric)))
    of_tasks = [line for line in found if line.metric.startswith(TASK)]
    return tuple(of_tasks or found)
