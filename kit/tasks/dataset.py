"""Prompt sets of others, read through `datasets`: from the hub or from files, with disjoint splits and named errors.

Looked up on 2026-11-24 with datasets 5.2: loading scripts are no longer supported, so a hub repository that has one
(`tatsu-lab/alpaca_eval`) is read by the address of its file, `hf://datasets/REPOSITORY/FILE`.
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from pyarrow import ArrowInvalid

from kit.rewards.combine import RewardFunction
from kit.tasks.task import Split
from kit.types import Prompt

FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
ADVICE = "give path= a file that ends in .jsonl, .json or .parquet, or a name on the hub that can be reached from here"
BATCH_ROWS = 1000  # rows that are Python objects at a time


class MissingColumnError(ValueError):
    """The data set has another schema than the loader reads."""


class OverlapError(ValueError):
    """Two splits share a prompt: what is measured would not be held out."""


def read(path: str, split: str = "train") -> Any:
    """A `datasets.Dataset`, memory-mapped: its rows become Python objects when they are asked for.

    Args:
        path: a file or glob that ends in .jsonl, .json or .parquet, here or at `hf://datasets/...`; else what
            `datasets.load_dataset` takes, such as a name on the hub or a folder of such files.
        split: of a name on the hub or a folder. A file is all there is.

    Raises:
        ModuleNotFoundError: if `datasets` is not installed.
        FileNotFoundError, ConnectionError: if there is no such data set, or it cannot be reached.
        ValueError: if a file cannot be read as what its name says, or has no rows, or the data set is a script.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetGenerationError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("expected the package datasets, came none: pip install '.[gpu]'") from error
    suffix = next((suffix for suffix in FILE_FORMATS if path.endswith(suffix)), None)
    try:
        if suffix:
            return datasets.load_dataset(FILE_FORMATS[suffix], data_files=path, split="train")
        return datasets.load_dataset(path, split=split)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"expected a data set at {path}, came none: {error}: {ADVICE}") from error
    except ConnectionError as error:
        raise ConnectionError(f"expected to reach the data set {path}: {error}: {ADVICE}") from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise ValueError(
            f"expected data in {path}, came a loading script: give path= one of its files, hf://datasets/{path}/FILE"
        ) from error
    except (DatasetGenerationError, ArrowInvalid) as error:
        reason = error.__cause__ or error
        raise ValueError(f"expected {suffix or 'data'} in {path}, came what cannot be read: {reason}") from error
    except (ValueError, StopIteration) as error:
        if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
            raise ValueError(f"expected at least one row in {path}, came none: {ADVICE}") from error
        raise


def column_of(rows: Any, path: str, *names: str) -> str:
    """The first of `names` that the data set has: its versions differ.

    Raises:
        MissingColumnError: if it has none of them.
    """
    found = [name for name in names if name in rows.column_names]
    if not found:
        raise MissingColumnError(
            f"expected a column {' or '.join(map(repr, names))} in {path}, came the columns {rows.column_names}: "
            "rename the one that holds it, or give path= a data set of the schema in the module's docstring"
        )
    return found[0]


def each_row(rows: Any, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows as dicts of only these columns, a batch in memory at a time."""
    for batch in rows.select_columns(list(dict.fromkeys(columns))).iter(BATCH_ROWS):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def canonical(text: str) -> str:
    """What two prompts share if they are the same: the text, however it is spaced.

    >>> canonical(" What is\\n 2+2? ")
    'What is 2+2?'
    """
    return " ".join(text.split())


def prompt_id(task: str, text: str) -> str:
    """The same for the same text, wherever it stands in the data set.

    >>> prompt_id("math", "What is 2+2?")  # printf 'What is 2+2?' | sha256sum
    'math/52cb6b5e4a038af1'
    """
    return f"{task}/{sha256(canonical(text).encode()).hexdigest()[:16]}"


def place(text: str, seed: int) -> bytes:
    """Sorting by it shuffles texts: by their hashes, so that neither the file's order nor other rows matter."""
    return sha256(f"{seed}/{canonical(text)}".encode()).digest()


def user_turn(task: str, id: str, text: str, **columns: Any) -> Prompt:
    """One user message, no system prompt, as in the paper."""
    return Prompt(id, [{"role": "user", "content": text}], columns | {"task": task})


def text_of(prompt: Prompt) -> str:
    """What the user says."""
    return prompt.content if isinstance(prompt.content, str) else prompt.content[-1]["content"]


def check_disjoint(task: str, splits: Mapping[Split, Sequence[Prompt]]) -> None:
    """Raises OverlapError if two splits share a prompt or one has it twice, ValueError if a split is empty."""
    seen: dict[str, Split] = {}
    for name, prompts in splits.items():
        if not prompts:
            raise ValueError(f"expected prompts in each split of {task}, came none in {name}: lower the other splits")
        for prompt in prompts:
            text = prompt_id(task, text_of(prompt))
            if text in seen:
                raise OverlapError(
                    f"expected every prompt of {task} once, came {prompt.id!r} in {seen[text]} and in {name}: drop it "
                    "from one of them"
                )
            seen[text] = name


def only_test(task: str, name: Split) -> None:
    """Raises ValueError unless the test split of a benchmark is asked for."""
    if name != "test":
        raise ValueError(
            f"expected 'test', the only split of the benchmark {task}, came {name!r}: train on another task"
        )


def check_rewards(functions: Sequence[RewardFunction], weights: Sequence[float], at_least: int) -> None:
    """Raises ValueError unless there are enough reward functions, and a weight for each."""
    if len(functions) < at_least or len(functions) != len(weights):
        raise ValueError(
            f"expected at least {at_least} reward functions and a weight for each, came {len(functions)} functions and "
            f"weights {tuple(weights)}"
        )


def check_sizes(at_least: int, **sizes: int | None) -> None:
    """Raises ValueError if a size is below `at_least`; None means no limit."""
    for name, size in sizes.items():
        if size is not None and size < at_least:
            raise ValueError(f"expected {name} >= {at_least}, came {size}")


def in_order(counts: Mapping[str, int]) -> dict[str, int]:
    """What became of the rows: how many there were, how many were dropped for which reason, how many were kept.

    >>> in_order({"kept": 3, "proof": 2, "rows": 5})
    {'rows': 5, 'proof': 2, 'kept': 3}
    """
    reasons = {name: count for name, count in counts.items() if name not in {"rows", "kept"}}
    return {"rows": counts.get("rows", 0), **reasons, "kept": counts.get("kept", 0)}


def describe_counts(counts: Mapping[str, int]) -> str:
    """The same in one line.

    >>> describe_counts({"kept": 3, "proof": 2, "rows": 5})
    'rows 5, proof 2, kept 3'
    """
    return ", ".join(f"{name} {count}" for name, count in in_order(counts).items())


def is_text(value: Any) -> bool:
    """Whether it is a string with something in it."""
    return isinstance(value, str) and bool(value.strip())
