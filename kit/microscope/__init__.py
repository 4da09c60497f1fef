"""The rollout microscope: from what is recorded of every completion to what a person sees of it in a notebook.

`Microscope(run)` shows it, `group_html` one group anywhere; `Rollouts` finds and reads.
"""

from kit.microscope.filters import Filter
from kit.microscope.group import Completion, Group
from kit.microscope.html import group_html
from kit.microscope.measures import MEASURES
from kit.microscope.rollouts import Found, Rollouts
from kit.microscope.widget import Microscope

__all__ = ["MEASURES", "Completion", "Filter", "Found", "Group", "Microscope", "Rollouts", "group_html"]
