"""The paper's verifiable reward: 1 if math-verify finds the completion's answer equal to the solution, else 0.

Verification runs in processes that can be killed (`kit.rewards.pool`), so it works on any thread and survives any
completion. Plain integers, the embedded model's daily bread, are judged without it, to the same verdict.

Source: Lanchantin et al. 2025, arXiv 2506.21495, section 4.2. There whatever raises scores 0; here it is `None`,
because it is no evidence of a wrong answer.
"""

import json
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from kit.rewards.completion import Completion, completion_text
from kit.rewards.pool import WorkerPool

# -P keeps the working directory off the import path, where a user's `random.py` would break the worker.
WORKER_COMMAND = (sys.executable, "-P", "-W", "ignore", "-m", "kit.rewards.math_worker")
CACHE_SIZE = 1 << 16  # verdicts kept, about 200 bytes each
INTEGER = re.compile(r"-?[0-9]{1,15}")
ONE_INTEGER_BOX = re.compile(r"[^\\{}$\[]*\\boxed\{(-?[0-9]{1,15})\}[^\\{}$\[]*")


class MathReward:
    r"""Reward function on TRL's contract: is the completion's boxed answer equal to the `solution` column?

    Verdicts are 1.0, 0.0, or `None` where nothing can be said: the solution is `None` (another task's row) or not
    mathematics, or the verifier raised or had to be killed. Processes start with the first completion that needs one.

    Args:
        workers: verifier processes, at least 1.
        timeout_s: seconds for one completion, > 0.
        memory_bytes: address space of a verifier process.

    >>> reward = MathReward()
    >>> reward(completions=[r"25+39=\boxed{64}", r"\boxed{54}", "64"], solution=["64", "64", "64"])
    [1.0, 0.0, 0.0]
    """

    __name__ = "math_reward"

    def __init__(self, workers: int = 2, timeout_s: float = 5.0, memory_bytes: int = 1 << 30) -> None:
        self._pool = WorkerPool(WORKER_COMMAND, workers=workers, timeout_s=timeout_s, memory_bytes=memory_bytes)
        self._settings = (workers, timeout_s, memory_bytes)
        self._verdicts: OrderedDict[bytes, float] = OrderedDict()  # by digest, least recently used first
        self._judged = {"fast": 0, "cached": 0, "verified": 0}
        self._lock = threading.Lock()

    def __call__(
        self, completions: Sequence[Completion], solution: Sequence[str | None], **columns: Any
    ) -> list[float | None]:
        """One verdict a completion. `columns` are the batch's other columns, which TRL passes to every function.

        Raises:
            ValueError: if there are not as many solutions as completions.
            TypeError: if a solution is neither a string nor `None`, or a completion has no text.
            RuntimeError: if no verifier process can be started.
        """
        pairs = _pairs(completions, solution)
        with self._lock:
            distinct = list(dict.fromkeys(pair for pair in pairs if pair is not None))
            known = self._judge_known(distinct)
            unknown = [pair for pair in distinct if pair not in known]
            verdicts: list[float | None] = self._pool.run(unknown) if unknown else []
            self._judged["verified"] += len(unknown)
            for pair, verdict in zip(unknown, verdicts, strict=True):
                known[pair] = verdict
                self._remember(pair, verdict)
        return [None if pair is None else known[pair] for pair in pairs]

    def metrics(self) -> dict[str, int]:
        """Counts since construction, of distinct (completion, solution) pairs in each call.

        `fast`, `cached`, `verified`: how they were judged. `timeouts`, `crashes`, `errors`: those of `verified` that
        got `None`; `errors` includes solutions that are not mathematics.
        """
        return {**self._judged, **self._pool.counts}

    def close(self) -> None:
        """End the verifier processes; a later call starts new ones."""
        self._pool.close()

    def __reduce__(self) -> tuple[type, tuple[int, float, int]]:
        return type(self), self._settings  # a copy in another process starts processes of its own

    def _judge_known(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], float | None]:
        """The verdicts that need no verifier."""
        known: dict[tuple[str, str], float | None] = {}
        for pair in pairs:
            verdict = quick_verdict(*pair)
            if verdict is not None:
                self._judged["fast"] += 1
                known[pair] = verdict
            elif (digest := _digest(pair)) in self._verdicts:
                self._judged["cached"] += 1
                self._verdicts.move_to_end(digest)
                known[pair] = self._verdicts[digest]
        return known

    def _remember(self, pair: tuple[str, str], verdict: float | None) -> None:
        if verdict is not None:  # what failed once on a busy machine may succeed later
            self._verdicts[_digest(pair)] = verdict
            if len(self._verdicts) > CACHE_SIZE:
                self._verdicts.popitem(last=False)


def quick_verdict(completion: str, solution: str) -> float | None:
    r"""math-verify's verdict where it can be told without it, else `None`.

    Only for a solution that is a plain integer. math-verify looks for an answer between dollars, `\[ \]`, `\( \)`,
    ` [ ] `, in `\frac{}{}` or in `\boxed{}`; where none of these can occur, there is no answer. Where the only one is a
    single box around plain digits, that is the answer.

    >>> quick_verdict(r"2+2=4;\boxed{4}", "4"), quick_verdict("2+2=4", "4"), quick_verdict(r"\boxed{2+2}", "4")
    (1.0, 0.0, None)
    """
    if not INTEGER.fullmatch(solution) or "$" in completion or "[" in completion:
        return None
    if "\\" not in completion or ("}" not in completion and "\\(" not in completion):
        return 0.0
    box = ONE_INTEGER_BOX.fullmatch(completion)
    return float(int(box[1]) == int(solution)) if box else None


def _pairs(completions: Sequence[Completion], solution: Sequence[str | None]) -> list[tuple[str, str] | None]:
    """What is to be compared, row by row; `None` where there is no solution."""
    if len(completions) != len(solution):
        raise ValueError(f"expected one solution a completion, got {len(solution)} for {len(completions)} completions")
    for index, answer in enumerate(solution):
        if answer is not None and not isinstance(answer, str):
            raise TypeError(
                f"expected solution[{index}] to be a string such as '42', or None, got {type(answer).__name__} "
                f"{answer!r}: convert the column with str()"
            )
    texts = [completion_text(completion) for completion in completions]
    return [None if answer is None else (text, answer) for text, answer in zip(texts, solution, strict=True)]


def _digest(pair: tuple[str, str]) -> bytes:
    return blake2b(json.dumps(pair).encode(), digest_size=16).digest()
