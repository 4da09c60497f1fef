"""What is kept of every completion: the columns of `rollouts/*.parquet` and `evaluations/*.parquet`.

One row a completion, the completions of a prompt one after the other. What is not known, or was not asked of a model,
is null: a completion that was not trained on has no policy log-probs, an engine that tells no entropies leaves none.
`COLUMNS` defines each; all log-probs and entropies are in nats, per completion token, end-of-sequence token included.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        raise ValueError(f"expected columns of kit.columns.COLUMNS, came {unknown}")
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
