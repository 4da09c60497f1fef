"""What is kept of every completion: the columns of `rollouts/*.parquet` and `evaluations/*.parquet`.

One row a completion, the completions of a prompt one after the other. What is not known, or was not asked of a model,
is null: a completion that was not trained on has no policy log-probs, an engine that tells no entropies leaves none.
`COLUMNS` defines each; all log-probs and entropies are in nats, per completion token, end-of-sequence token included.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from kit.learner import Logprobs
from kit.rollouts import Batch
from kit.types import Example, Group, Messages, Rollout

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = {
    "prompt_id": ("string", "unique within the task"),
    "task": ("string", "the prompt's column `task`"),
    "prompt": ("string", "as text; of several chat messages each as `role: content`, a blank line between"),
    "index": ("int32", "of the completion within its group, from 0"),
    "completion": ("string", "as text"),
    "reward": ("double", "total; null = no function could judge it"),
    "rewards": ("map", "by reward function; null = abstained"),
    "version": ("int64", "optimizer updates in the weights that generated it"),
    "finish_reason": ("string", "stop, or length = cut at max_completion_length"),
    "old_logprob": ("double", "sum over tokens under the sampler"),
    "tokens": ("int32", "completion tokens"),
    "role": ("string", "what it trained as: chosen, rejected, advantage=..., or unused"),
    "reason": ("string", "why it was unused"),
    "pieces": ("strings", "the text of each token, decoded alone"),
    "old_logprobs": ("floats", "under the distribution it was sampled from"),
    "entropies": ("floats", "of that distribution"),
    "logprobs": ("floats", "under the policy, before the update"),
    "ref_logprobs": ("floats", "under the reference, where the objective has one"),
}

REPETITIVE = ["pieces.list.element", "rewards.key_value.key"]  # leaves in a file, like the columns of strings
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


def schema() -> "pa.Schema":
    """The types of `COLUMNS` in a file."""
    import pyarrow as pa  # 0.2 s to import

    types = {
        "string": pa.string(), "int32": pa.int32(), "int64": pa.int64(), "double": pa.float64(),
        "map": pa.map_(pa.string(), pa.float64()), "strings": pa.list_(pa.string()), "floats": pa.list_(pa.float32()),
    }  # fmt: skip
    return pa.schema([(name, types[kind]) for name, (kind, _) in COLUMNS.items()])


def as_table(columns: Mapping[str, Sequence[Any]]) -> "pa.Table":
    """Columns with the types that `COLUMNS` gives them, in its order.

    Raises:
        ValueError: for a column that it does not define.
    """
    import pyarrow as pa

    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise ValueError(f"expected columns of kit.recording.COLUMNS, came {unknown}")
    return pa.table(
        {field.name: pa.array(columns[field.name], field.type) for field in schema() if field.name in columns}
    )


def write_columns(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """A parquet file of `as_table(columns)`: each text once, in a dictionary; numbers hardly repeat."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = as_table(columns)
    texts = [field.name for field in table.schema if field.type == pa.string()]
    names: Any = [*texts, *REPETITIVE]  # or a bool, as which alone pyarrow declares it
    pq.write_table(table, path, compression="zstd", use_dictionary=names, write_statistics=False)
