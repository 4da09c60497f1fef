"""Instructions without a reference answer: AlpacaEval, Arena-Hard, and any file of instructions.

Looked up on 2026-11-24:

- AlpacaEval 2.0: `tatsu-lab/alpaca_eval`, CC BY-NC 4.0, file `alpaca_eval_gpt4_baseline.json` with 805 rows: columns
  `instruction`, `output` (of GPT-4 Turbo, the baseline of version 2.0), `generator`, `dataset`. The repository has a
  loading script, which `datasets` no longer runs, so the file itself is read. `alpaca_eval.json` has the same
  instructions with the outputs of text-davinci-003, the baseline of version 1.
- Arena-Hard: `lmarena-ai/arena-hard-auto-v0.1`, Apache-2.0, split `train`, 500 rows: `question_id`, `category`,
  `cluster`, `turns` (a list of `{"content": ...}`, of one turn). Files of `lmarena-ai/arena-hard-auto` (Apache-2.0)
  have `uid`, `category`, `cluster` or `subcategory`, `prompt`, and are read too; for the 750 prompts of version 2.0:
  path="hf://datasets/lmarena-ai/arena-hard-auto/data/arena-hard-v2.0/question.jsonl". The paper does not say which
  version it means; v0.1 is the one whose scores it is near.
- Evol-Test: `WizardLM_testset.jsonl` of github.com/nlpxucan/WizardLM, CC BY-NC 4.0, 218 rows: `idx`, `Skill`,
  `Difficulty`, `Instruction`.
- The 253 validation prompts of Humpback (Li et al. 2023, arXiv 2308.06259) are not published under a name that we
  found: who has them puts them in a file with a column `instruction`.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from kit.rewards.combine import RewardFunction
from kit.tasks.dataset import (
    canonical,
    check_rewards,
    column_of,
    describe_counts,
    each_row,
    in_order,
    is_text,
    only_test,
    prompt_id,
    read,
    user_turn,
)
from kit.tasks.task import Judging, Split
from kit.types import Prompt

INSTRUCTION_COLUMNS = ("instruction", "Instruction", "prompt")


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """What a benchmark is judged by.

    Attributes:
        reward_functions: on TRL's contract; none where a judge compares instead.
        weights: one a function.
        judging: how completions are judged; by default by the mean reward alone.
    """

    reward_functions: tuple[RewardFunction, ...] = ()
    weights: tuple[float, ...] = ()
    judging: Judging = field(default_factory=Judging, hash=False)

    def __post_init__(self) -> None:
        check_rewards(self.reward_functions, self.weights, at_least=0)

    def rewards(self) -> tuple[list[RewardFunction], list[float]]:
        return list(self.reward_functions), list(self.weights)


@dataclass(frozen=True)
class Instructions(_Judged):
    """The instructions of one or more files, each once, raw as the user turn.

    The paper's validation set of the non-verifiable task, given its first part in a file:

        Instructions(paths=("humpback_valid.jsonl", "WizardLM_testset.jsonl"), exclude=(ALPACA_EVAL,))

    Attributes:
        paths: files or names on the hub (split `train`), see `kit.tasks.dataset.read`.
        exclude: likewise; an instruction that is in one of them is left out.
        column: of the instruction in all `paths`; None = `instruction`, `Instruction` or `prompt`, whichever is there.
    """

    paths: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    column: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.paths:
            raise ValueError("expected at least one path, came none")

    @property
    def name(self) -> str:
        return "instructions"

    def split(self, name: Split) -> tuple[Prompt, ...]:
        only_test(self.name, name)
        return _load_instructions(self.paths, self.exclude, self.column)[0]

    def counts(self) -> dict[str, int]:
        """`rows`, then how many of them were dropped and why, then `kept`."""
        return dict(_load_instructions(self.paths, self.exclude, self.column)[1])


ALPACA_EVAL = "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json"


@dataclass(frozen=True)
class AlpacaEval(_Judged):
    """The 805 instructions of AlpacaEval 2.0, all in their order; the column `baseline` holds what a judge compares to.

    Attributes:
        path: a file or a name on the hub (split `train`), see `kit.tasks.dataset.read`.
    """

    path: str = ALPACA_EVAL

    @property
    def name(self) -> str:
        return "alpaca_eval"

    def split(self, name: Split) -> tuple[Prompt, ...]:
        only_test(self.name, name)
        return _load_alpaca_eval(self.name, self.path)


@dataclass(frozen=True)
class ArenaHard(_Judged):
    """The 500 prompts of Arena-Hard-Auto v0.1, or another version's by `path`, all in their order.

    Attributes:
        path: a file or a name on the hub (split `train`), see `kit.tasks.dataset.read`.
    """

    path: str = "lmarena-ai/arena-hard-auto-v0.1"

    @property
    def name(self) -> str:
        return "arena_hard"

    def split(self, name: Split) -> tuple[Prompt, ...]:
        only_test(self.name, name)
        return _load_arena_hard(self.name, self.path)


@cache
def _load_instructions(
    paths: tuple[str, ...], exclude: tuple[str, ...], column: str | None
) -> tuple[tuple[Prompt, ...], dict[str, int]]:
    counts: Counter[str] = Counter(rows=0)
    left_out = {canonical(text) for path in exclude for text in _texts(path, None) if is_text(text)}
    found: dict[str, str] = {}
    for path in paths:
        for text in _texts(path, column):
            counts["rows"] += 1
            if not is_text(text):
                counts["without text"] += 1
            elif canonical(text) in left_out:
                counts["excluded"] += 1
            else:
                counts["duplicate" if canonical(text) in found else "kept"] += 1
                found.setdefault(canonical(text), text)
    if not found:
        raise ValueError(f"expected instructions in {paths}, came {describe_counts(counts)}: give other paths")
    prompts = tuple(user_turn("instructions", prompt_id("instructions", text), text) for text in found.values())
    return prompts, in_order(counts)


def _texts(path: str, column: str | None) -> list[Any]:
    rows = read(path)
    name = column_of(rows, path, *([column] if column else INSTRUCTION_COLUMNS))
    return [row[name] for row in each_row(rows, [name])]


@cache
def _load_alpaca_eval(task: str, path: str) -> tuple[Prompt, ...]:
    rows = read(path)
    columns = [column_of(rows, path, name) for name in ("instruction", "output")]
    prompts = []
    for index, row in enumerate(each_row(rows, columns)):
        _check_text(path, index, row["instruction"])
        prompts.append(user_turn(task, f"{task}/{index}", row["instruction"], baseline=row["output"]))
    return tuple(prompts)


@cache
def _load_arena_hard(task: str, path: str) -> tuple[Prompt, ...]:
    rows = read(path)
    id_column, column = column_of(rows, path, "uid", "question_id"), column_of(rows, path, "prompt", "turns")
    prompts: dict[str, Prompt] = {}
    for index, row in enumerate(each_row(rows, [id_column, column])):
        text, id = row[column], f"{task}/{row[id_column]}"
        if column == "turns":
            if len(text or []) != 1:
                raise ValueError(f"expected one turn in row {index} of {path}, came {len(text or [])}: drop the row")
            text = text[0]["content"]
        _check_text(path, index, text)
        if row[id_column] is None or id in prompts:
            raise ValueError(f"expected an {id_column} of its own in row {index} of {path}, came {row[id_column]!r}")
        prompts[id] = user_turn(task, id, text)
    return tuple(prompts.values())


def _check_text(path: str, index: int, text: Any) -> None:
    if not is_text(text):
        raise ValueError(
            f"expected an instruction in every row of {path}, came {text!r} in row {index}: mend the file, since a "
            "benchmark is only comparable as a whole"
        )
