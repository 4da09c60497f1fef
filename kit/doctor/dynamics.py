"""Is training going where it should? Entropy, length, evaluations, chosen log-probs, numbers that are none.

`now` is the mean over the last 5 batches, `start` over the first 3. Thresholds were set beside 117 runs of this project
(`papermill_runs/`: off_policy, on_drift; notebooks 05, 07, 08), whose values are given with each rule.
"""

import math
import statistics
from collections.abc import Iterator

from kit.doctor.finding import Finding
from kit.doctor.signal import shown
from kit.doctor.window import LAST, History, Record, Setup, number
from kit.runlog import MEASURED

ENTROPY_SHARE = 0.05  # of the start's; runs that end at 0.95 accuracy keep 0.08 to 0.12
SEQUENCE_ENTROPY = 0.1  # nats a completion; those runs keep 0.2
SHORTER = 0.5  # times the start's length; healthy runs stay above 0.8
LONGER, CUT = 1.5, 0.2  # times the start's length, with this fraction truncated; fair reward model: 1.55 and 0.02
MUCH_LONGER = 3.0  # times, whether truncated or not
FALL = 0.1  # of an accuracy or a win rate
DISPLACED = 1.0  # nats a completion; on-policy runs stay within 0.01 of 0 or above it


def entropy(history: History, setup: Setup) -> Iterator[Finding]:
    """`entropy_collapse` (warning): the sampler's entropy now, or the trained policy's at the last evaluation, is
    below 5 % of the start's; or below 0.1 nats a completion (entropy a token times mean length). A distribution of H
    nats has an outcome of probability at least exp(-H), here 0.90, so that a group of 8 is all that one outcome with
    probability 0.45 or more.

    Source: the paper's section on entropy collapse (arXiv 2506.21495); verl#5953, rllm#116, OPSD#5.
    """
    pairs = {"the sampler's entropy": (history.start("sampler/entropy"), history.recent("sampler/entropy"))}
    if len(history.evaluations) > 1:
        first, last = (number(history.evaluations[index], "eval/entropy") for index in (0, -1))
        pairs["the policy's entropy on fresh samples"] = (first, [] if last is None else [last])
    lengths = history.recent("completions/mean_length")
    for what, (start, recent) in pairs.items():
        if not (start and recent and lengths and history.has_trend):
            continue
        now, length = statistics.fmean(recent), statistics.fmean(lengths)
        if now < ENTROPY_SHARE * start or now * length < SEQUENCE_ENTROPY:
            yield Finding(
                "entropy_collapse",
                "warning",
                f"{what} went from {start:.3g} to {now:.2g} nats a token ({now / start:.1%} of the start), "
                f"{now * length:.2g} nats a completion",
                "lower learning_rate, stop earlier, sync the reference less often, or add an entropy term "
                "(entropy_coef); completions of a group are now nearly all the same",
                history.step,
            )
            return


def length(history: History, setup: Setup) -> Iterator[Finding]:
    """`length_collapse` (warning): mean length now is at most half the start's. `length_runaway`: at least 1.5 times it
    while 20 % or more are truncated (warning), or at least 3 times (note: long reasoning may be wanted).

    Under this project's length-biased reward model length grew 3-fold with 0.9 truncated; under the fair one 1.55-fold
    with 0.02. The one collapse among 117 runs was uncorrected GRPO at s=50, to 0.49 of the start.

    Source: the paper's length growth under a reward model; Visual-RFT#176 (an empty answer gets 1.0), rasbt#122.
    """
    start, recent = history.start("completions/mean_length"), history.recent("completions/mean_length")
    clipped = history.recent("completions/clipped_ratio")
    if not (start and recent and clipped and history.has_trend):
        return
    now, cut = statistics.fmean(recent), statistics.fmean(clipped)
    seen = (
        f"completions went from {start:.3g} to {now:.3g} tokens ({now / start:.2g} times), {cut:.0%} of them truncated"
    )
    if now <= SHORTER * start:
        remedy = (
            "read some completions: does the reward favour short or empty ones? Lower learning_rate, sync more often"
        )
        yield Finding("length_collapse", "warning", seen + shown(history.samples), remedy, history.step)
    elif now >= MUCH_LONGER * start or (now >= LONGER * start and cut >= CUT):
        remedy = (
            "compare eval/length_controlled_win_rate with eval/win_rate: a reward model may be paying for length. Add "
            "a soft length penalty, raise beta or kl_coef, or raise max_completion_length if length is what you want"
        )
        severity = "warning" if cut >= CUT else "note"
        yield Finding("length_runaway", severity, seen + shown(history.samples), remedy, history.step)


def evaluation(history: History, setup: Setup) -> Iterator[Finding]:
    """`evaluation_falls` (warning): held-out accuracy, or win rate, is below the best so far by at least 0.1, and the
    two 95 % intervals do not overlap. `reward_hacking` (warning): the same of a win rate, while the training reward is
    above what it was at the best evaluation.

    Source: arXiv 2506.21495, Table 1 (offline training decays); CoursIA PR#4538, Pref-GRPO#9 ("how do I know?").
    """
    for name in ("eval/accuracy", "eval/win_rate"):
        known = [
            r for r in history.evaluations if all(number(r, name + end) is not None for end in ("", "_low", "_high"))
        ]
        if len(known) < 2 or known[-1] is not history.evaluations[-1]:
            continue
        best, now = max(known, key=lambda record: record[f"{name}_low"]), known[-1]
        if now[f"{name}_high"] >= best[f"{name}_low"] or best[name] - now[name] < FALL:
            continue
        gain = _reward_gain(best, now, history)
        seen = f"{name} {_interval(best, name)} at step {best['step']}, {_interval(now, name)} at step {now['step']}"
        if name == "eval/win_rate" and gain > 0:
            yield Finding(
                "reward_hacking", "warning", f"{seen}, while the reward rose by {gain:.3g}",
                "the reward no longer stands for what is judged: go back to the best checkpoint, raise beta or "
                "kl_coef, mend the reward (length bias, repetition)", history.step,
            )  # fmt: skip
        else:
            is_stale = bool(history.last and number(history.last[-1], "sync/staleness"))
            sooner = "sync more often (a smaller s), correct for staleness (kit.importance), or " if is_stale else ""
            remedy = f"go back to the best checkpoint; then {sooner}lower learning_rate"
            yield Finding("evaluation_falls", "warning", seen, remedy, history.step)


def displacement(history: History, setup: Setup) -> Iterator[Finding]:
    """`chosen_displaced` (note): over the last 5 batches chosen completions are at least 1 nat less likely under the
    policy than under the reference, and rejected ones less likely still: the margin grows although both fall.

    Likelihood displacement is how DPO's loss works, not a fault of the code, but the probability goes elsewhere. Told
    by `rewards/chosen` / beta, which does not depend on which completions were drawn. Offline arms: -2 to -6 nats.

    Source: trl#800, eric-mitchell/dpo#8, #32, #36, OpenRLHF#1054; Razin et al. 2024 (arXiv 2410.08847).
    """
    pairs = [history.recent(name) for name in ("rewards/chosen", "rewards/rejected")]
    if not setup.beta or not all(pairs):
        return
    chosen, rejected = (statistics.fmean(values) / setup.beta for values in pairs)
    if chosen <= -DISPLACED and rejected < chosen:
        yield Finding(
            "chosen_displaced",
            "note",
            f"over the last {LAST} batches chosen completions are {-chosen:.2g} nats less likely under the policy than "
            f"under the reference, rejected ones {-rejected:.2g}",
            "sync more often: on fresh completions chosen ones rise. Offline: stop earlier, or add nll_coef",
            history.step,
        )


def non_finite(history: History, setup: Setup) -> Iterator[Finding]:
    """`non_finite` (error): a metric of the latest record, timing aside, is NaN or infinite.

    Source: trl#3452, #3857, unsloth#3006 (gradients of NaN that nobody saw).
    """
    odd = [
        f"{name}={value}"
        for name, value in history.latest.items()
        if isinstance(value, float) and not math.isfinite(value) and not name.startswith(MEASURED)
    ]
    if odd:
        remedy = (
            "go back to the last checkpoint, lower learning_rate or max_grad_norm; float16 overflows, bfloat16 does not"
        )
        yield Finding("non_finite", "error", ", ".join(odd[:5]), remedy, history.step)


def _interval(record: Record, name: str) -> str:
    return f"{record[name]:.3f} [{record[f'{name}_low']:.3f}, {record[f'{name}_high']:.3f}]"


def _reward_gain(best: Record, now: Record, history: History) -> float:
    """How much the reward of fresh samples rose since the best evaluation; 0 if it is not known."""
    before, after = (number(record, "eval/reward") for record in (best, now))
    return 0.0 if before is None or after is None else after - before
