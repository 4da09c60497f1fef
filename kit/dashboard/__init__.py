"""A live view of a run in a notebook: curves, controls, forks, and a static twin for an executed notebook."""

from kit.dashboard.curves import LiveCurves
from kit.dashboard.dashboard import Dashboard

__all__ = ["Dashboard", "LiveCurves"]
