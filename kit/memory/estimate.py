"""An estimate of memory as a value: bytes by moment and part, what to change, and tables of both."""

from collections.abc import Mapping
from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True)
class Moment:
    """What is held at one moment of a step, in bytes by name; its sum is what is needed then."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Advice:
    """A knob turned, alone, and the peak that would follow, in bytes."""

    change: str
    peak: int
    fits: bool


@dataclass(frozen=True)
class Estimate:
    """What a run needs, in bytes.

    Attributes:
        parameters: of the model; tied ones count once.
        trained_parameters: of all weights, or of the adapters.
        moments: in the order of a step.
        total_bytes: what the device has; None = unknown.
        advice: what would make it fit, or save most, best first; empty if it fits, or nothing is known of the device.
        logits: what the output layer takes in chunks, as the kit does.
        plain_logits: what it would take for a whole micro-batch: logits, their log-softmax and gradient, in float32.
        concurrent_sequences: how many of full length vLLM's share has room for; None without vLLM.
    """

    parameters: int
    trained_parameters: int
    moments: tuple[Moment, ...]
    total_bytes: int | None
    advice: tuple[Advice, ...]
    logits: int
    plain_logits: int
    concurrent_sequences: int | None

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def fits(self) -> bool | None:
        """Whether the peak fits the device; None if its size is unknown."""
        return None if self.total_bytes is None else self.peak.total <= self.total_bytes

    def rows(self) -> list[list[str]]:
        """A header, a row a part, and the sums; a column a moment, GB."""
        names = list(dict.fromkeys(name for moment in self.moments for name in moment.parts))
        rows = [[name, *(_gb(moment.parts.get(name, 0)) for moment in self.moments)] for name in names]
        return [
            ["GB", *(moment.name for moment in self.moments)], *rows,
            ["sum", *(_gb(moment.total) for moment in self.moments)],
        ]  # fmt: skip

    def markdown(self) -> str:
        """The same for a notebook."""
        header, *rows = self.rows()
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + "  \n".join(self._remarks())

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        cells = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
        lines = ["  ".join([row[0].ljust(widths[0]), *rest]) for row, (_, *rest) in zip(rows, cells, strict=True)]
        return "\n".join([*lines, "", *self._remarks()])

    def _remarks(self) -> list[str]:
        peak, has = self.peak, "" if self.total_bytes is None else f" of {_gb(self.total_bytes)} GB"
        verdict = {True: "fits", False: "does not fit", None: "device unknown"}[self.fits]
        found = [
            f"peak: {_gb(peak.total)} GB{has}, at the moment '{peak.name}': {verdict}",
            f"parameters: {self.parameters:,}, of which in training {self.trained_parameters:,}",
            f"logits: {_gb(self.logits)} GB in chunks; {_gb(self.plain_logits)} GB if held at once",
        ]
        if self.concurrent_sequences is not None:
            found.append(f"vLLM: its share holds {self.concurrent_sequences} sequences of full length at a time")
        return found + [
            f"{advice.change}: {_gb(advice.peak)} GB{', fits' if advice.fits else ''}" for advice in self.advice
        ]


def _gb(size: int) -> str:
    """With two decimals; what is smaller than a hundredth keeps its digits."""
    return f"{size / GB:,.2f}" if size >= GB / 100 or size == 0 else f"{size / GB:.2g}"
