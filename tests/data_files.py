"""Files that have the schema of a data set on the hub: what the loaders of the paper's data are tested on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FORMATS = (".jsonl", ".json", ".parquet")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """`rows` in the format that the name says; returns the path as loaders take it."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(rows)), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def content(prompt: Any) -> str:
    """The one user message of a prompt."""
    assert [message["role"] for message in prompt.content] == ["user"]
    assert [sorted(message) for message in prompt.content] == [["content", "role"]]
    return prompt.content[0]["content"]
