"""The rollout microscope: from what is recorded of every completion to what a person sees of it in a notebook."""

from kit.microscope.filters import Filter
from kit.microscope.group import Completion, Group
from kit.microscope.html import group_html
from kit.microscope.rollouts import Found, Rollouts

__all__ = ["Completion", "Filter", "Found", "Group", "Rollouts", "group_html"]
