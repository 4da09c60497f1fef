"""What is kept of every completion, and what it was trained as: fills the columns of `kit.columns`."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

from kit.learner import Logprobs
from kit.rollouts import Batch
from kit.types import Example, Group, Messages, Rollout

UNUSED = "unused"
UNJUDGED = "unjudged: no function could judge it"
ALONE = "alone: no other completion of its group was judged"
TIE = "tie: all judged rewards of its group are equal"
NOT_SELECTED = "not selected: the objective took none of its group"
NOT_DRAWN = "not drawn: other completions of its group were taken"
TOO_OLD = "too old: the sampler lagged behind the policy more than max_age updates"


class Recorder:
    """Turns groups into columns.

    Args:
        tokenizer: of the policy; the text of each token id is asked for once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def completions(self, groups: Sequence[Group]) -> dict[str, list[Any]]:
        """Of an evaluation: nothing of them was trained on."""
        rows = [(group, index, rollout) for group in groups for index, rollout in enumerate(group.rollouts)]
        return {
            "prompt_id": [group.prompt.id for group, _, _ in rows],
            "task": [_task(group) for group, _, _ in rows],
            "prompt": [prompt_text(group.prompt.content) for group, _, _ in rows],
            "index": [index for _, index, _ in rows],
            "completion": [rollout.text for _, _, rollout in rows],
            "reward": [group.rewards[index] for group, index, _ in rows],
            "rewards": [
                [(name, values[index]) for name, values in group.rewards_by_function.items()]
                for group, index, _ in rows
            ],
            "finish_reason": [rollout.finish_reason for _, _, rollout in rows],
            "old_logprob": [sum(rollout.old_logprobs) for _, _, rollout in rows],
            "tokens": [len(rollout.completion_ids) for _, _, rollout in rows],
            "pieces": self._decoded([rollout for _, _, rollout in rows]),
            "old_logprobs": [rollout.old_logprobs for _, _, rollout in rows],
            "entropies": [rollout.entropies or None for _, _, rollout in rows],
        }

    def rollouts(self, batch: Batch, examples: Sequence[Example], before: Sequence[Logprobs]) -> dict[str, list[Any]]:
        """Of a training step.

        Args:
            batch: what was generated and selected.
            examples: those of its examples that the update was given: all, or none because they are too old.
            before: what the models said of them before the update.
        """
        is_too_old = len(examples) < len(batch.examples)
        roles = roles_of(chain.from_iterable(batch.selected))
        whys = [
            _role_and_reason(group, index, roles, is_too_old)
            for group in batch.groups
            for index in range(len(group.rollouts))
        ]
        trained = _by_rollout(batch, before)
        rollouts = [rollout for group in batch.groups for rollout in group.rollouts]
        policy, reference = zip(*(trained.get(id(rollout), (None, None)) for rollout in rollouts), strict=True)
        return self.completions(batch.groups) | {
            "version": [rollout.version for rollout in rollouts],
            "role": [role for role, _ in whys],
            "reason": [reason for _, reason in whys],
            "logprobs": list(policy),
            "ref_logprobs": list(reference),
        }

    def _decoded(self, rollouts: Sequence[Rollout]) -> list[list[str]]:
        for token in set(chain.from_iterable(rollout.completion_ids for rollout in rollouts)) - self._pieces.keys():
            self._pieces[token] = str(self._tokenizer.decode([token]))
        return [[self._pieces[token] for token in rollout.completion_ids] for rollout in rollouts]


def prompt_text(content: str | Messages) -> str:
    r"""A prompt as it is read: a text, a user's only message, or several messages with their roles.

    >>> prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1="}])
    'system: Be brief.\n\nuser: 1+1='
    """
    if isinstance(content, str):
        return content
    if [message["role"] for message in content] == ["user"]:
        return content[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in content)


def roles_of(examples: Iterable[Example]) -> dict[int, str]:
    """What each rollout (by identity) trains as; with `all_pairs` one can be chosen here and rejected there."""
    roles: dict[int, list[str]] = {}
    for example in examples:
        names = [f"advantage={advantage:.3f}" for advantage in example.advantages]
        names = ["chosen" if is_chosen else "rejected" for is_chosen in example.is_chosen] or names
        for rollout, name in zip(example.rollouts, names, strict=True):
            roles.setdefault(id(rollout), []).append(name)
    return {rollout: " and ".join(dict.fromkeys(names)) for rollout, names in roles.items()}


def _role_and_reason(group: Group, index: int, roles: Mapping[int, str], is_too_old: bool) -> tuple[str, str | None]:
    role = roles.get(id(group.rollouts[index]))
    if role:
        return (UNUSED, TOO_OLD) if is_too_old else (role, None)
    judged = [reward for reward in group.rewards if reward is not None]
    if group.rewards[index] is None:
        return UNUSED, UNJUDGED
    if any(id(rollout) in roles for rollout in group.rollouts):
        return UNUSED, NOT_DRAWN
    if len(judged) == 1:
        return UNUSED, ALONE
    return UNUSED, TIE if len(set(judged)) == 1 else NOT_SELECTED


def _by_rollout(batch: Batch, before: Sequence[Logprobs]) -> dict[int, tuple[list[float], list[float] | None]]:
    """Log-probs under policy and reference of each rollout, by the identity that it has in the batch's groups."""
    found: dict[int, tuple[list[float], list[float] | None]] = {}
    for rollouts, policy, reference in before:
        of_policy, of_reference, start = policy.tolist(), None if reference is None else reference.tolist(), 0
        for rollout in rollouts:
            end = start + len(rollout.completion_ids)
            found[id(rollout)] = of_policy[start:end], of_reference and of_reference[start:end]
            start = end
    drawn = [rollout for examples in batch.selected for example in examples for rollout in example.rollouts]
    learned: list[Rollout] = [rollout for example in batch.examples for rollout in example.rollouts]  # may be copies
    return {id(d): found[id(t)] for d, t in zip(drawn, learned, strict=True) if id(t) in found}


def _task(group: Group) -> str | None:
    task = group.prompt.columns.get("task")
    return None if task is None else str(task)
