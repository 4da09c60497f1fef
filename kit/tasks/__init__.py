"""Tasks: where prompts come from and which reward functions judge the completions."""

from collections.abc import Callable, Mapping

from kit.tasks.arithmetic import Arithmetic
from kit.tasks.embedded_chat import embedded_chat
from kit.tasks.numina import NuminaMath
from kit.tasks.task import Judging, Portion, Split, Task
from kit.tasks.wildchat import WildChat

TASKS: dict[str, Callable[..., Task]] = {
    "arithmetic": Arithmetic,
    "chat": embedded_chat,
    "numina_math": NuminaMath,
    "wildchat": WildChat,
}  # a papermill parameter is a string; nothing else in the kit looks at the name


def task_or_portions(text: str, constructors: Mapping[str, Callable[[], Task]]) -> Task | list[Portion]:
    """What a papermill parameter says: one task by its name, or several with the share of each.

    Args:
        text: a name, or `name:prompts_per_step[:group_size[:max_completion_length]]` joined by `+`.
        constructors: name -> what makes the task; only those named are called.

    Raises:
        ValueError: if a name is unknown, or a share is not one to three whole numbers.

    >>> portions = task_or_portions("arithmetic:16+arithmetic:0:4:48", {"arithmetic": Arithmetic})
    >>> [(p.prompts_per_step, p.group_size, p.max_completion_length) for p in portions]
    [(16, None, None), (0, 4, 48)]
    """
    parts = [part.split(":") for part in text.split("+")]
    for name, *sizes in parts:
        is_alone = len(parts) == 1 and not sizes
        if name not in constructors or not (is_alone or (len(sizes) <= 3 and sizes and all(map(str.isdigit, sizes)))):
            raise ValueError(
                f"expected one of {sorted(constructors)}, or several such as arithmetic:16:8:48+chat:16:8:80 with "
                f"prompts a step, group size and completion length of each, came {text!r}"
            )
    if len(parts) == 1 and len(parts[0]) == 1:
        return constructors[text]()
    return [Portion(constructors[name](), *map(int, sizes)) for name, *sizes in parts]


__all__ = [
    "TASKS",
    "Arithmetic",
    "Judging",
    "NuminaMath",
    "Portion",
    "Split",
    "Task",
    "WildChat",
    "embedded_chat",
    "task_or_portions",
]
