"""A reward function under a time limit, in processes that can be killed: for one that may hang, or end the run."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from kit.rewards.combine import RewardFunction, function_name
from kit.rewards.pool import WorkerPool

NOT_SENT = {"trainer_state", "log_extra", "log_metric"}  # objects of this process


class TimeLimited:
    """Reward function on TRL's contract: `function`, asked about one completion at a time in processes of its own.

    Where it hangs, crashes or runs out of memory the verdict is `None`, counted in `metrics()`. What it raises, or
    returns against the contract, is an error here too. In its process nobody listens to `log_extra` and `log_metric`.

    Args:
        function: judges each completion by itself, and is imported from a file: a process cannot see a notebook's cell.
        timeout_s: seconds for one completion, > 0.
        workers: processes, at least 1.
        memory_bytes: address space of a process, its libraries included.

    Raises:
        ValueError: if `function` cannot be imported by its name, or a limit is out of range.

    >>> from kit.rewards import boxed_format_reward
    >>> reward = TimeLimited(boxed_format_reward, timeout_s=5.0)
    >>> reward(completions=[r"\\boxed{9}", "9"], task=["math", "math"])
    [1.0, 0.0]
    """

    def __init__(
        self, function: RewardFunction, *, timeout_s: float, workers: int = 2, memory_bytes: int = 8 << 30
    ) -> None:
        module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
        if module in (None, "__main__") or getattr(sys.modules.get(module), name, None) is not function:
            raise ValueError(
                f"expected a function that a new process can import by name, got {function_name(function)!r} of "
                f"{module}: write it at the top level of a file, such as my_rewards.py, and import it from there"
            )
        self.__name__ = function_name(function)
        command = [sys.executable, "-P", "-W", "ignore", "-m", "kit.rewards.limited_worker", module, name]
        command.append(json.dumps(sys.path))
        self._pool = WorkerPool(command, workers=workers, timeout_s=timeout_s, memory_bytes=memory_bytes)

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """One verdict a completion.

        Raises:
            RuntimeError: if the function raises, or breaks the contract; or no process can be started.
            ValueError: if a column has not one entry a completion.
            TypeError: if a column holds what JSON cannot.
        """
        rows = {name: list(values) for name, values in columns.items() if name not in NOT_SENT}
        rows["completions"] = list(completions)
        for name, values in rows.items():
            if len(values) != len(completions):
                raise ValueError(
                    f"expected {len(completions)} entries in {name!r}, one a completion, got {len(values)}"
                )
        names = list(rows)
        items = [dict(zip(names, row, strict=True)) for row in zip(*rows.values(), strict=True)]
        errors = self._pool.counts["errors"]
        try:
            verdicts = self._pool.run(items)
        except TypeError as error:
            raise TypeError(
                f"expected columns that can be sent to the process of {self.__name__!r} as JSON, got {error}: give the "
                "prompts numbers, strings, lists and None"
            ) from error
        if self._pool.counts["errors"] > errors:
            raise RuntimeError(f"the reward function {self.__name__!r} failed in its process: {self._pool.last_error}")
        return verdicts

    def metrics(self) -> dict[str, int]:
        """Completions since construction that have no verdict: `timeouts` and `crashes`; and `errors`."""
        return dict(self._pool.counts)

    def close(self) -> None:
        """End the processes; a later call starts new ones."""
        self._pool.close()
