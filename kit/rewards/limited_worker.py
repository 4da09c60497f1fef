"""The process of a `TimeLimited` reward function: imports it by name, as the run itself did, and judges with it.

Run by `kit.rewards.limited` as `python -m kit.rewards.limited_worker MODULE FUNCTION SEARCH_PATH_AS_JSON`.
"""

import json
import sys
from importlib import import_module
from typing import Any

from kit.rewards.combine import RewardFunction, score
from kit.rewards.worker import serve


def judge(function: RewardFunction, row: dict[str, Any]) -> float | None:
    """What `function` says of one completion, checked.

    >>> judge(lambda completions, **columns: [len(text) for text in completions], {"completions": "four"})
    4.0
    """
    row = {"prompts": None, "completion_ids": []} | row
    prompts, completions, ids = ([row.pop(name)] for name in ("prompts", "completions", "completion_ids"))
    columns = {name: [value] for name, value in row.items()}
    totals, _ = score([function], [1.0], prompts=prompts, completions=completions, completion_ids=ids, columns=columns)
    return totals[0]


if __name__ == "__main__":
    module, name, search_path = sys.argv[1:]
    sys.path[:] = json.loads(search_path)
    loaded = getattr(import_module(module), name)
    serve(lambda row: judge(loaded, row))
