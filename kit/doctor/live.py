"""The doctor beside a run: fed each step's record, it says what is wrong once, until that has cleared."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from kit.doctor import dynamics, signal, staleness
from kit.doctor.finding import Finding
from kit.doctor.window import History, Record, Setup, of_task, samples_of, tasks_in
from kit.types import Group

Detector = Callable[[History, Setup], Iterator[Finding]]
OF_A_TASK: tuple[Detector, ...] = (  # in a run of several tasks each is looked at by itself
    signal.truncation, signal.constant_reward, signal.abstention, signal.contrast, dynamics.length, dynamics.entropy,
    dynamics.evaluation,
)  # fmt: skip
OF_THE_RUN: tuple[Detector, ...] = (
    staleness.sampler_stale, staleness.far_off_policy, dynamics.displacement, dynamics.non_finite,
)  # fmt: skip
CLEARED = 20  # records without a finding after which it counts as new again: a rule near its threshold must not flood
LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "note": logging.INFO}

logger = logging.getLogger(__name__)


class Doctor:
    """Looks at a run step by step. What it says follows from the records, so a resumed run is told the same."""

    def __init__(self, setup: Setup | None = None) -> None:
        self.setup = Setup() if setup is None else setup
        self._histories = {"": History()}  # by task; "" is the whole run
        self._quiet: dict[tuple[str, str], int] = {}  # findings that were told -> records since they were last seen

    def examine(self, record: Record, groups: Sequence[Group] = ()) -> list[Finding]:
        """The findings that are new with this record: not told yet, or not since they were absent for 20 records.

        Args:
            record: as in `metrics.jsonl`, the next one.
            groups: of this step, so that a finding can show a completion; it may lack them.
        """
        self._push(record, groups)
        new = []
        seen = {(finding.name, finding.about): finding for finding in self._findings()}
        for key, finding in seen.items():
            if key not in self._quiet:
                new.append(finding)
            self._quiet[key] = 0
        for key in [key for key in self._quiet if key not in seen]:
            self._quiet[key] += 1
            if self._quiet[key] >= CLEARED:
                del self._quiet[key]
        return new

    def replay(self, records: Iterable[Record]) -> list[Finding]:
        """Take up the records of a run so far; returns what was told on the way."""
        return [finding for record in records for finding in self.examine(record)]

    def holds(self, finding: Finding) -> bool:
        """Whether a finding has not cleared."""
        return (finding.name, finding.about) in self._quiet

    def _push(self, record: Record, groups: Sequence[Group]) -> None:
        self._histories[""].push(record, samples_of(groups))
        for task in tasks_in(record):
            of_its_own = [group for group in groups if group.prompt.columns.get("task") == task]
            self._histories.setdefault(task, History()).push(of_task(record, task), samples_of(of_its_own))

    def _findings(self) -> Iterator[Finding]:
        for detector in OF_THE_RUN:
            yield from detector(self._histories[""], self.setup)
        several = [task for task in self._histories if task]
        for task in several or [""]:
            setup = (
                replace(self.setup, functions=()) if several else self.setup
            )  # which task's a function is, is not known
            for detector in OF_A_TASK:
                for finding in detector(self._histories[task], setup):
                    about = ", ".join(filter(None, (task, finding.about)))
                    yield replace(finding, about=about)


def tell(finding: Finding) -> None:
    """Through logging: errors and warnings reach stderr, and so a notebook, unless logging was told otherwise."""
    logger.log(LEVELS[finding.severity], "kit doctor: %s", finding)
