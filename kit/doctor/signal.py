"""Is there anything to learn from? Truncated completions, rewards that say nothing, groups without contrast.

In peers' trackers these are the commonest ways to train for hours on nothing: finite losses, exit status 0.
"""

from collections.abc import Iterator

from kit.doctor.finding import Finding
from kit.doctor.window import LAST, History, Sample, Setup
from kit.printable import excerpt

MOST = 0.5  # truncated or unjudged: more of what is learned then comes from the limit than from the task
NEARLY_ALL = 0.95  # truncated: one in twenty is left to learn from
SOLVED = 0.9  # mean reward of a task in {0, 1} whose groups agree because nearly every completion is right
ALWAYS_ZERO = (
    "call the function by hand on a completion that is right. Does it read the column that holds the solution, the "
    "answer's format, the whole (not truncated) completion? Or is the task too hard: look at eval/pass_at_*"
)
FORGOTTEN = "the policy has lost what it could do: go back to a checkpoint, lower learning_rate, sync more often"
CONSTANT = (
    "it teaches nothing. Either all completions are alike in it (then give it weight 0, or take harder prompts), or it "
    "says so of anything: call it by hand on a wrong and on an empty completion"
)


def truncation(history: History, setup: Setup) -> Iterator[Finding]:
    """`never_ends` (error): in the last 5 batches, and in every one before, each completion was cut at the limit.
    `truncated` (warning; error from 95 %): half of the completions of the last 5 batches or more.

    Healthy runs of this project's studies stay below 0.06 (means of 5 batches).

    Source: autocontext PR#1067 (a cap of 256 tokens made every reward 0), ms-swift#4950, CoursIA PR#11304 (a string
    prompt, so no end token), trl PR#6220 (the warning that was closed unmerged).
    """
    ratios = history.recent("completions/clipped_ratio")
    if not ratios or sum(ratios) / LAST < MOST:
        return
    length = history.recent("completions/mean_length")[-1]
    share, example = sum(ratios) / LAST, shown([s for s in history.samples if s.finish_reason == "length"])
    seen = f"{share:.0%} of the last {LAST} batches' completions were cut, at {length:.0f} tokens on average{example}"
    if not history.has_ended:
        remedy = (
            "see that the model can end: messages instead of strings as prompts for a chat model, an end token that "
            "its chat template writes (`kit doctor --model FOLDER`); or raise max_completion_length"
        )
        yield Finding("never_ends", "error", f"no completion ever ended: {seen}", remedy, history.step)
    else:
        remedy = (
            "raise max_completion_length, or make completions shorter (a soft length penalty in the reward): a cut "
            "answer is mostly scored as a wrong one"
        )
        yield Finding("truncated", "error" if share >= NEARLY_ALL else "warning", seen, remedy, history.step)


def constant_reward(history: History, setup: Setup) -> Iterator[Finding]:
    """A reward function said the same of every completion of the last 5 batches.

    `verifier_always_zero`: its mean is exactly 0 in each (error; warning beside other functions). `constant_reward`:
    exactly one other number in each, while no group has contrast (warning), or while groups differ by other functions
    (note): a mean of many unequal rewards does not repeat to the last digit. Rewards below 0 that cancel to a mean of
    0 are told apart by the groups, which then have contrast.

    Source: verl PR#5635 (all MATH scores silently 0), Math-Verify#50 and #55, trl PR#5281, autocontext PR#1067.
    """
    functions = functions_of(history)
    is_flat = all(value == 1 for value in history.recent("frac_reward_zero_std") or [0.0])
    for name in functions:
        means = history.recent(f"rewards/{name}/mean")
        if not means or len(set(means)) > 1 or (len(functions) == 1 and not is_flat):
            continue
        seen = f"every mean of {name} in the last {LAST} batches is {means[0]:g}"
        if means[0] == 0:
            severity = "error" if len(functions) == 1 else "warning"
            start = history.start(f"rewards/{name}/mean")
            seen += f", {start:.3g} at the start" if start else ""
            remedy = FORGOTTEN if start else ALWAYS_ZERO
            yield Finding("verifier_always_zero", severity, seen + shown(history.samples), remedy, history.step, name)
        else:
            severity = "warning" if is_flat else "note"
            yield Finding("constant_reward", severity, seen + shown(history.samples), CONSTANT, history.step, name)


def abstention(history: History, setup: Setup) -> Iterator[Finding]:
    """`nothing_judged` (error): in the last 5 batches no function could judge any completion. `mostly_unjudged`
    (warning): half of the completions or more. `function_abstains` (warning): one function judged none of them, while
    others did. Functions that never judged anything are known by name only where `Setup.functions` gives them.

    Source: trl PR#5775, PR#6427 (a `None` that counts as 0.0 is a reward for doing nothing), PR#3079.
    """
    unjudged, lengths = history.recent("rewards/unjudged"), history.recent("completions/mean_length")
    tokens = history.recent("num_tokens")
    if not unjudged or not tokens:
        return
    total = sum(round(count / length) for count, length in zip(tokens, lengths, strict=True))
    share = sum(unjudged) / max(total, 1)
    seen = f"{sum(unjudged):.0f} of the last {LAST} batches' {total} completions were judged by no reward function"
    remedy = (
        "find out why the functions return None: a column that the data set does not have, the name in the column "
        "`task`, a time limit. MathReward's and TimeLimited's metrics() count timeouts"
    )
    if share >= 1:
        yield Finding("nothing_judged", "error", seen, remedy, history.step)
    elif share >= MOST:
        yield Finding("mostly_unjudged", "warning", seen, remedy, history.step)
    if share < 1:
        for name in dict.fromkeys([*setup.functions, *functions_of(history, history.first)]):
            if len(history.last) == LAST and not any(f"rewards/{name}/mean" in record for record in history.last):
                seen = f"{name} judged none of the last {LAST} batches' {total} completions"
                yield Finding("function_abstains", "warning", seen, remedy, history.step, name)


def contrast(history: History, setup: Setup) -> Iterator[Finding]:
    """`no_contrast`: in the last 5 batches all rewards of each group are equal, or no group gave a training example.
    Warning if the mean reward is at least 0.9 (solved), else error: weights do not move. Not said where
    `constant_reward` or `abstention` names the cause.

    Source: trl#3708 and PR#3758, open-r1#239 (loss 0), tinker-cookbook's `by_group/frac_*`. In 117 runs of this project
    the longest streak of such batches was 5 once, in a collapsed run, 2 once, and at most 1 in the others.
    """
    flat, used = history.recent("frac_reward_zero_std"), history.recent("groups/used")
    is_flat, is_unused = bool(flat) and min(flat) == 1, bool(used) and max(used) == 0
    if not (is_flat or is_unused) or any(constant_reward(history, setup)) or any(abstention(history, setup)):
        return
    rewards = history.recent("reward")
    reward = sum(rewards) / LAST if rewards else 0.0
    what = "all rewards of each group are equal" if is_flat else "no group gave a training example"
    seen = f"in the last {LAST} batches {what}; mean reward {reward:.3g}"
    if reward >= SOLVED:
        yield Finding("no_contrast", "warning", seen, "the task is solved: stop, or take harder prompts", history.step)
        return
    remedy = (
        "take prompts that the model sometimes gets right (eval/pass_at_* between 0.1 and 0.9), larger groups, a "
        "temperature of 1; and see whether entropy or length collapsed"
        if is_flat
        else "the objective takes none of these groups: GroupDPO and correct_incorrect want rewards of 0 and 1; use "
        "best_worst for a reward model's scores"
    )
    yield Finding("no_contrast", "error", seen + shown(history.samples), remedy, history.step)


def functions_of(history: History, records: list | None = None) -> list[str]:
    """Names of the reward functions that judged something in these records, by default the latest ones."""
    names = dict.fromkeys(name for record in (history.last if records is None else records) for name in record)
    return [n[len("rewards/") : -len("/mean")] for n in names if n.startswith("rewards/") and n.endswith("/mean")]


def shown(samples: tuple[Sample, ...] | list[Sample]) -> str:
    """The first of some completions, for the reader to look at."""
    if not samples:
        return ""
    how = "cut" if samples[0].finish_reason == "length" else "ended"
    return f"; such as {excerpt(samples[0].text)} ({how}, reward {samples[0].reward})"
