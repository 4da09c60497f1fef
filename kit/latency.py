"""How long a run takes for a sync interval s, from how long its parts take: the recurrence of a step, exactly.

A batch is drawn by a sampler and trained on by a trainer, in order; a sync stops both. With all parts of constant
length this says what overlapping saves, and who waits for whom.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parts:
    """Seconds that one batch takes; see `elapsed`.

    Attributes:
        generate: to draw it, while nothing else is in the way.
        train: to train on it, scoring and selecting included.
        sync: to copy the weights, once a sync.
    """

    generate: float
    train: float
    sync: float

    def __post_init__(self) -> None:
        if min(self.generate, self.train, self.sync) < 0:
            raise ValueError(f"expected seconds >= 0, came {self}")


@dataclass(frozen=True)
class Elapsed:
    """Of a whole run: wall-clock, and the shares of it in which sampler and trainer did nothing, syncs included."""

    seconds: float
    sampler_idle: float
    trainer_idle: float


def elapsed(parts: Parts, steps: int, interval: int | None, *, depth: int = 0, ahead: int = 0) -> Elapsed:
    """The run's wall-clock, by following every batch through sampler, sync and trainer.

    Batch k may be drawn once batch k - 1 - depth was trained on and the sync before batch k - ahead was made. A sync
    begins when the batch before it was trained on and all that may be drawn was drawn.

    Args:
        parts: seconds.
        steps: optimizer steps, >= 1.
        interval: s, >= 1; None = never.
        depth: batches drawn beyond the one that is trained on; 0 = a blocking run.
        ahead: of these, how many may be drawn for after the next sync.

    >>> elapsed(Parts(2.0, 1.0, 0.0), 10, None).seconds  # one after the other
    30.0
    >>> elapsed(Parts(2.0, 1.0, 0.0), 10, None, depth=2).seconds  # the trainer waits for every batch
    21.0
    >>> elapsed(Parts(2.0, 1.0, 0.5), 10, 5, depth=2).seconds  # 2 windows of 5 x 2 + 1, and a sync
    22.5
    """
    if steps < 1 or (interval is not None and interval < 1) or not 0 <= ahead <= depth:
        raise ValueError(
            "expected steps >= 1, interval >= 1 or None, and 0 <= ahead <= depth, came "
            f"{steps}, {interval}, {depth} and {ahead}"
        )
    drawn: list[float] = []  # when each batch was complete
    trained: list[float] = []
    sampler_free = trainer_free = 0.0

    def draw_through(last: int) -> None:
        nonlocal sampler_free
        for number in range(len(drawn), min(last + 1, steps)):
            allowed = trained[number - 1 - depth] if number > depth else 0.0
            sampler_free = max(sampler_free, allowed) + parts.generate
            drawn.append(sampler_free)

    for step in range(steps):
        if interval is not None and step > 0 and step % interval == 0:
            draw_through(step + ahead - 1)
            sampler_free = trainer_free = max(sampler_free, trainer_free) + parts.sync
        draw_through(step)
        trainer_free = max(trainer_free, drawn[step]) + parts.train
        trained.append(trainer_free)
    end = trained[-1]
    if not end:
        return Elapsed(0.0, 0.0, 0.0)
    return Elapsed(end, 1 - steps * parts.generate / end, 1 - steps * parts.train / end)
