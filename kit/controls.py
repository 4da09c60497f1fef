"""The hand on a running run: pause, step, resume, and knobs that take effect at the next step.

Whoever changes something only leaves a value here, from any thread; the run picks it up on its own thread between two
steps, and writes it into `events.jsonl`, so that the run can be replayed without anybody there.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kit.settings import Settings

Changes = Mapping[str, Any]
LOOK_S = 0.05  # how often a paused run looks whether it may go on


class Controls:
    """What a run reads between two steps.

    Args:
        settings: what the run starts with.
        check: raises ValueError for settings that the run cannot have.
        recorded: (step, changes) of an earlier life of this run, made again at the same steps.

    Attributes:
        poll: called between steps and while the run is paused, on the run's thread. A front end that shares this thread
            handles its messages here; None where messages have a thread of their own.
    """

    def __init__(
        self, settings: Settings, check: Callable[[Settings], None], recorded: Iterable[tuple[int, Changes]] = ()
    ) -> None:
        self.poll: Callable[[], None] | None = None
        self._check, self._settings, self._wanted = check, settings, settings
        self._pending: dict[str, Any] = {}
        self._recorded = sorted(recorded, key=lambda entry: entry[0])  # stable: the order of one step's stays
        self._lock = threading.Condition()
        self._paused, self._single_steps = False, 0

    def __getitem__(self, name: str) -> Any:
        """The value in force of a knob. KeyError for one that this run does not have."""
        return self.values()[name]

    def values(self) -> dict[str, Any]:
        """Every knob of this run with the value in force; see `kit.settings.CHANGEABLE`."""
        with self._lock:
            return self._settings.values()

    def pending(self) -> dict[str, Any]:
        """What was set and waits for the next step."""
        with self._lock:
            return dict(self._pending)

    def set(self, **changes: Any) -> None:
        """Change knobs from the next step on; a batch that serves several steps (`reuse_epochs`) is used up first.

        Raises:
            ValueError, TypeError: for a knob that this run does not have, or a value that it cannot have; then nothing
                changes.
        """
        with self._lock:
            wanted = self._wanted.changed(changes)
            self._check(wanted)
            self._wanted = wanted
            self._pending |= changes

    def take(self, step: int) -> tuple[Settings, Changes]:
        """The settings of the step that begins, and what was set by hand since the step before."""
        with self._lock:
            while self._recorded and self._recorded[0][0] <= step:
                _, changes = self._recorded.pop(0)
                self._settings, self._wanted = self._settings.changed(changes), self._wanted.changed(changes)
            taken, self._pending = self._pending, {}
            self._settings = self._wanted = self._settings.changed(taken)
            return self._settings, taken

    @property
    def is_paused(self) -> bool:
        """Whether the run stands, or will at the end of its step."""
        return self._paused

    def pause(self) -> None:
        """Stop before the next step, until `resume`."""
        with self._lock:
            self._paused, self._single_steps = True, 0

    def resume(self) -> None:
        """Go on."""
        with self._lock:
            self._paused, self._single_steps = False, 0
            self._lock.notify_all()

    def step(self) -> None:
        """Make one step more and stand again; pauses a run that is going."""
        with self._lock:
            self._paused, self._single_steps = True, self._single_steps + 1
            self._lock.notify_all()

    def wait(self, when_paused: Callable[[], None]) -> None:
        """Return when the run may make its next step. For the run; Ctrl-C gets through.

        Args:
            when_paused: called once if the run has to stand.
        """
        has_stood = False
        while True:
            if self.poll is not None:
                self.poll()
            with self._lock:
                if not self._paused:
                    return
                if self._single_steps:
                    self._single_steps -= 1
                    return
                if has_stood:
                    self._lock.wait(LOOK_S)
            if not has_stood:
                when_paused()
                has_stood = True
