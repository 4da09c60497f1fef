"""What the browser is sent: plain lists and texts, every text made visible, every number ready to be read."""

from collections.abc import Mapping
from typing import Any

from kit.microscope.group import Completion
from kit.microscope.measures import MEASURES, Measure, number
from kit.microscope.rollouts import SORTS, Rollouts
from kit.microscope.text import LIMIT, cut, excerpt, visible

LINE = 120  # characters of a prompt in the list
SAME = 60  # buttons for the same prompt at other steps


def about(rollouts: Rollouts) -> dict[str, Any]:
    """What there is to choose from."""
    choices = {
        name: [{"value": value, "text": excerpt(value, LINE)} for value in values]
        for name, values in rollouts.choices().items()
    }
    return {"choices": choices, "sorts": list(SORTS), "limit": LIMIT}


def line_payload(line: Mapping[str, Any]) -> dict[str, Any]:
    """A group in the list: a mark a completion, as high as its reward among those of the group."""
    rewards = line["rewards"]
    judged = [reward for reward in rewards if reward is not None]
    low, high = min([0.0, *judged]), max([1.0, *judged])
    told = ["not judged" if reward is None else number(reward) for reward in rewards]
    facts = [f"step {line['step']}", line["kind"] if line["kind"] == "evaluation" else f"age {line['age']}"]
    return {
        "number": line["number"],
        "prompt": excerpt(line["prompt"] or "", LINE),
        "facts": excerpt(" · ".join([*facts, *([line["task"]] if line["task"] else [])]), LINE),
        "rewards": f"rewards {', '.join(told)}",
        "marks": [
            {"share": None if reward is None else (reward - low) / (high - low), "told": f"reward {text}"}
            for reward, text in zip(rewards, told, strict=True)
        ],
    }


def group_payload(rollouts: Rollouts, chosen: int, limit: int) -> dict[str, Any]:
    """A group with its tokens, and where else its prompt occurs."""
    group = rollouts.group(chosen)
    ends = {name: measure.end(group.completions) for name, measure in MEASURES.items()}
    [prompt], rest = cut([group.prompt or " "], limit)
    names = [group.kind, f"step {group.step}", group.task or "", group.prompt_id, group.run]
    return {
        "number": chosen,
        "facts": " · ".join(excerpt(name, LINE) for name in names if name),
        "prompt": visible(prompt),
        "prompt_rest": rest,
        "same": _same_prompt(rollouts, chosen),
        "measures": [_measure(name, measure, ends[name]) for name, measure in MEASURES.items()],
        "completions": [_completion(completion, ends, limit) for completion in group.completions],
    }


def facts_of(completion: Completion) -> str:
    """What is known of a completion, apart from its role."""
    facts = [f"reward {'not judged' if completion.reward is None else number(completion.reward)}"]
    if len(completion.rewards) > 1:
        facts += [f"{name} {'–' if v is None else number(v)}" for name, v in completion.rewards.items()]
    facts += [f"age {completion.age}", f"{completion.tokens} tokens"]
    facts += ["cut at max_completion_length"] if completion.finish_reason == "length" else []
    return visible(" · ".join(facts))


def role_of(completion: Completion) -> tuple[str, str]:
    """What it trained as, in a word or two, and in full."""
    if not completion.role:
        return "held out", "held out: of an evaluation"
    if not completion.reason:
        return visible(completion.role), visible(completion.role)
    short, _, _ = completion.reason.partition(":")
    return visible(f"{completion.role}: {short}"), visible(f"{completion.role}: {completion.reason}")


def _same_prompt(rollouts: Rollouts, chosen: int) -> list[dict[str, Any]]:
    """The nearest in time, where there are very many."""
    numbers = rollouts.same_prompt(chosen)
    first = max(0, min(numbers.index(chosen) - SAME // 2, len(numbers) - SAME))
    lines = rollouts.groups.take(numbers[first : first + SAME]).to_pylist()
    several = len({line["run"] for line in lines}) > 1
    return [
        {
            "number": line["number"],
            "told": f"step {line['step']}"
            + ("" if line["reward_mean"] is None else f" · reward {number(line['reward_mean'])}")
            + (f" · {excerpt(line['run'], LINE)}" if several else ""),
        }
        for line in lines
    ]


def _measure(name: str, measure: Measure, end: float) -> dict[str, Any]:
    ticks = measure.ticks(end)
    return {
        "name": name,
        "title": measure.title,
        "formula": measure.formula,
        "ticks": [number(value, measure.unit) for _, value in ticks],
        "colours": [measure.colour(share) for share, _ in ticks],
    }


def _completion(completion: Completion, ends: Mapping[str, float], limit: int) -> dict[str, Any]:
    pieces, rest = cut(completion.pieces, limit)
    numbers = {name: _numbers(completion, measure, ends[name], len(pieces)) for name, measure in MEASURES.items()}
    (role, why), facts = role_of(completion), facts_of(completion)
    return {
        "index": completion.index,
        "tokens": completion.tokens,
        "kind": role if role in ("chosen", "rejected") else "other",
        "role": role,
        "facts": f"#{completion.index} · {facts}",
        "why": why,
        "pieces": [visible(piece) for piece in pieces],
        "numbers": numbers,
        "rest": rest,
    }


def _numbers(completion: Completion, measure: Measure, end: float, count: int) -> dict[str, list[str]] | None:
    """Of the first tokens: what is told of each, and its colour."""
    values = measure.values(completion)
    if values is None:
        return None
    return {
        "told": [number(value, measure.unit) for value in values[:count]],
        "colours": [measure.colour(measure.share(value, end)) for value in values[:count]],
    }
