"""A language model as judge, behind any OpenAI-compatible chat endpoint: a score, or a comparison with a baseline.

An answer without a verdict is asked for once more, and then the judge abstains (`None`), counted by its reason.

Source: Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", arXiv 2306.05685, section 3:
single-answer grading, and pairwise comparison asked in both orders against the bias for a position.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Generic, TypeVar

from kit.models.endpoint import ChatEndpoint, ConversationRejected, EndpointFailed
from kit.models.judge_prompts import (
    CRITERION,
    PAIRWISE_PROMPT,
    POINTWISE_PROMPT,
    REMINDER,
    SCORE_LINE,
    WINNER_LINE,
    last_line,
    mark_for,
    prompt_text,
)
from kit.models.reward_model import Prompt
from kit.rewards.completion import Completion, completion_text

ABSTAINED = ("unparsable", "cut_off", "failed")  # why there is no verdict
OUTAGE = 8  # questions in a row without an answer; at least as many as are asked at once

Verdict = TypeVar("Verdict", float, str)


@dataclass(frozen=True)
class _Outcome(Generic[Verdict]):
    """What came of one question."""

    kind: str  # parsed, or one of ABSTAINED
    verdict: Verdict | None = None
    problem: EndpointFailed | None = None


class _Judge(Generic[Verdict]):
    """Asks many questions at once, and counts what came of each."""

    __name__ = "judge"

    def __init__(self, endpoint: ChatEndpoint, *, criterion: str, workers: int, name: str) -> None:
        if workers < 1:
            raise ValueError(f"expected at least 1 worker, got {workers}")
        self.endpoint, self.criterion, self.workers = endpoint, criterion, workers
        self.__name__ = name
        self._counts: dict[str, int] = {"parsed": 0} | dict.fromkeys(ABSTAINED, 0)

    def describe(self) -> dict[str, Any]:
        """For the configuration of a run: who judges, and by what; another of these is another run."""
        criterion = blake2b(self.criterion.encode(), digest_size=8).hexdigest()
        return {"name": self.__name__, "model": self.endpoint.model, "criterion_digest": criterion}

    def metrics(self) -> dict[str, int]:
        """Counts of questions since construction.

        `parsed`: with a verdict; `unparsable`: none in the last answer; `cut_off`: the last answer ended at
        `max_tokens`; `failed`: no answer from the endpoint.
        """
        return dict(self._counts)

    def _ask_all(
        self, questions: Sequence[str], parse: Callable[[str], Verdict | None], log_metric: Any
    ) -> list[Verdict | None]:
        """A verdict a question, or `None`.

        Raises:
            EndpointFailed: if no question got an answer, or `OUTAGE` in a row got none, so that the run does not go on
                without its reward. With 8 workers or more that is at most three times the endpoint's `patience_s` after
                its last answer: questions among which others were answered, those after them, those on their way.
        """
        before, in_a_row = dict(self._counts), 0
        outcomes: list[_Outcome[Verdict]] = []
        with ThreadPoolExecutor(self.workers) as pool:  # an error below cancels the questions that wait
            for outcome in pool.map(lambda question: self._ask(question, parse), questions):
                outcomes.append(outcome)
                self._counts[outcome.kind] += 1
                is_silent = outcome.problem and not isinstance(outcome.problem, ConversationRejected)
                in_a_row = in_a_row + 1 if is_silent else 0
                if in_a_row >= max(OUTAGE, self.workers):
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise EndpointFailed(
                        f"expected answers to {len(questions)} questions of {self.__name__}, got none to {in_a_row} in "
                        f"a row after {len(outcomes) - in_a_row}: {outcome.problem}"
                    )
        if questions and all(outcome.problem for outcome in outcomes):
            raise EndpointFailed(
                f"none of the {len(questions)} questions of {self.__name__} was answered: {outcomes[-1].problem}"
            )
        if log_metric and questions:
            for kind in ABSTAINED:
                log_metric(f"{self.__name__}/{kind}", (self._counts[kind] - before[kind]) / len(questions))
        return [outcome.verdict for outcome in outcomes]

    def _ask(self, question: str, parse: Callable[[str], Verdict | None]) -> _Outcome[Verdict]:
        """The verdict; after an answer without one, that of the answer to a reminder."""
        messages, kind = [{"role": "user", "content": question}], ""
        try:
            for _ in range(2):
                text = self.endpoint.ask(messages)
                if text is not None and (verdict := parse(text)) is not None:
                    return _Outcome("parsed", verdict)
                kind = "cut_off" if text is None else "unparsable"
                messages = [
                    *messages,
                    {"role": "assistant", "content": text or "(cut off)"},
                    {"role": "user", "content": REMINDER},
                ]
        except EndpointFailed as error:
            return _Outcome("failed", problem=error)
        return _Outcome(kind)


class PointwiseJudge(_Judge[float]):
    """Reward function on TRL's contract: the judge's score of a completion, from `low` to `high`.

    Args:
        endpoint: where the judge is asked; a question without a readable answer is asked twice, each with its retries.
        low, high: the ends of the scale, `low` < `high`.
        criterion: what makes an answer good, told to the judge.
        workers: questions asked at once, at least 1.
        name: under which metrics report it.
    """

    def __init__(
        self, endpoint: ChatEndpoint, *, low: int = 1, high: int = 10, criterion: str = CRITERION, workers: int = 8,
        name: str = "pointwise_judge",
    ) -> None:  # fmt: skip
        super().__init__(endpoint, criterion=criterion, workers=workers, name=name)
        if low >= high:
            raise ValueError(f"expected a scale with low < high, got {low} and {high}")
        self.low, self.high = low, high

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], *, log_metric: Any = None, **columns: Any
    ) -> list[float | None]:
        """One score a completion, `None` where the judge gave none.

        Raises:
            EndpointRefused, EndpointFailed: if the endpoint refuses every call, or fell silent.
            ValueError: if there are not as many prompts as completions.
        """
        _require_same_length(prompts, completions)
        questions = []
        for prompt, completion in zip(map(prompt_text, prompts), map(completion_text, completions), strict=True):
            questions.append(
                POINTWISE_PROMPT.format(
                    criterion=self.criterion, mark=mark_for(prompt, completion), prompt=prompt, answer=completion,
                    low=self.low, high=self.high,
                )
            )  # fmt: skip
        return self._ask_all(questions, self._parse, log_metric)

    def _parse(self, answer: str) -> float | None:
        line = last_line(answer, SCORE_LINE)
        return float(line) if line is not None and self.low <= float(line) <= self.high else None


class PairwiseJudge(_Judge[str]):
    """Reward function on TRL's contract: does the completion win against a baseline column's? 1, 0, or 0.5.

    Both orders are asked. Where they agree, the completion won (1) or lost (0); a tie in either order, or two orders
    that contradict each other, is 0.5. `None` where the baseline is `None` or an order got no verdict.

    Args:
        endpoint, criterion, workers, name: as for `PointwiseJudge`.
        baseline_column: the dataset's column with the completions to win against.
    """

    def __init__(
        self, endpoint: ChatEndpoint, *, baseline_column: str = "baseline", criterion: str = CRITERION,
        workers: int = 8, name: str = "pairwise_judge",
    ) -> None:  # fmt: skip
        super().__init__(endpoint, criterion=criterion, workers=workers, name=name)
        self.baseline_column = baseline_column
        self._counts |= {"ties": 0, "swapped_disagreement": 0}

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], *, log_metric: Any = None, **columns: Any
    ) -> list[float | None]:
        """The win rate over both orders, one a completion.

        Raises:
            EndpointRefused, EndpointFailed: if the endpoint refuses every call, or fell silent.
            ValueError: if the baseline's column is missing, or lengths disagree.
        """
        if self.baseline_column not in columns:
            raise ValueError(
                f"expected a column {self.baseline_column!r} with the completions to win against, got "
                f"{sorted(columns)}: add it to the data set, or name another in baseline_column"
            )
        baselines = columns[self.baseline_column]
        _require_same_length(prompts, completions, baselines)
        rows = [index for index, baseline in enumerate(baselines) if baseline is not None]
        questions: list[str] = []
        for index in rows:
            pair = completion_text(completions[index]), completion_text(baselines[index])
            questions += [self._question(prompt_text(prompts[index]), *order) for order in (pair, pair[::-1])]
        winners = self._ask_all(questions, lambda answer: last_line(answer, WINNER_LINE), log_metric)
        rewards: list[float | None] = [None] * len(completions)
        contradictions = self._counts["swapped_disagreement"]
        for index, first, swapped in zip(rows, winners[::2], winners[1::2], strict=True):
            rewards[index] = self._reward(first, swapped)
        if log_metric and rows:
            contradictions = self._counts["swapped_disagreement"] - contradictions
            log_metric(f"{self.__name__}/swapped_disagreement", contradictions / len(rows))
        return rewards

    def metrics(self) -> dict[str, int]:
        """Counts of questions, as `PointwiseJudge`'s, and of completions at 0.5: `ties`, `swapped_disagreement`."""
        return dict(self._counts)

    def _question(self, prompt: str, first: str, second: str) -> str:
        mark = mark_for(prompt, first, second)
        return PAIRWISE_PROMPT.format(criterion=self.criterion, mark=mark, prompt=prompt, first=first, second=second)

    def _reward(self, first: str | None, swapped: str | None) -> float | None:
        """From the winner with the completion as A, and with the completion as B."""
        if first is None or swapped is None:
            return None
        if "tie" in (first, swapped):
            self._counts["ties"] += 1
            return 0.5
        if first == swapped:  # one position won twice, whoever stood there
            self._counts["swapped_disagreement"] += 1
            return 0.5
        return float(first == "A")


def _require_same_length(prompts: Sequence[Any], *others: Sequence[Any]) -> None:
    if any(len(other) != len(prompts) for other in others):
        raise ValueError(
            f"expected as many completions and baselines as prompts, got {[len(other) for other in others]} for "
            f"{len(prompts)} prompts"
        )
