"""The doctor: detectors with a name, what was seen, and the remedy; before a run, beside it, and on its directory.

Two kinds, all of them pure generators of findings: checks of the parts of a run (`kit.doctor.before.CHECKS`), and
detectors on its records (`kit.doctor.live`). Each states its rule, its thresholds and where they come from.
"""

from kit.doctor.before import check_parts, model_parts
from kit.doctor.finding import Finding
from kit.doctor.live import Doctor, tell
from kit.doctor.parts import Parts
from kit.doctor.rundir import Diagnosis, examine_run
from kit.doctor.window import Setup

__all__ = ["Diagnosis", "Doctor", "Finding", "Parts", "Setup", "check_parts", "examine_run", "model_parts", "tell"]
