"""What the doctor says: a name, what was seen, and what to do about it."""

from dataclasses import dataclass
from typing import Any, Literal

from kit.printable import printable

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")  # gravest first


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a run, or looks so.

    Attributes:
        name: of the detector's rule, the same in every run.
        severity: "error": what is learned or measured is not what was meant; "warning": it will probably go wrong;
            "note": worth knowing.
        seen: the numbers that the rule went by.
        remedy: what to do.
        step: of the record that showed it; None = before the run.
        about: the reward function or task it is about, where there may be several.
    """

    name: str
    severity: Severity
    seen: str
    remedy: str
    step: int | None = None
    about: str = ""

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"Finding.severity must be one of {SEVERITIES}, got {self.severity!r}")

    def details(self) -> dict[str, Any]:
        """For `events.jsonl`; a finding from before the run belongs to step 0."""
        found = {"name": self.name, "severity": self.severity, "seen": self.seen, "remedy": self.remedy}
        return found | {"step": self.step or 0} | ({"about": self.about} if self.about else {})

    def __str__(self) -> str:
        """For a terminal or a notebook, without anything that could steer either."""
        about = f" ({self.about})" if self.about else ""
        when = "before the run" if self.step is None else f"step {self.step}"
        head = f"{self.severity}: {self.name}{about}, {when}"
        return "\n".join(map(printable, (head, f"  seen: {self.seen}", f"  do:   {self.remedy}")))
