"""Tasks: where prompts come from and which reward functions judge the completions."""

from kit.tasks.arithmetic import Arithmetic
from kit.tasks.task import Split, Task

TASKS = {"arithmetic": Arithmetic}  # a papermill parameter is a string; nothing else in the kit looks at the name

__all__ = ["TASKS", "Arithmetic", "Split", "Task"]
