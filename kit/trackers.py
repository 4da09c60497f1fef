"""A run's metrics in trackio, wandb or TensorBoard, for those who have them: one listener, and a few lines a tool.

The run directory stays the source of truth. What a tool shows can be made from it at any time, also of a run that was
interrupted, resumed or forked::

    for record in read_jsonl(out_dir / "metrics.jsonl"):
        track(record)
"""

import json
import logging
import math
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from kit.printable import printable
from kit.training import Record

logger = logging.getLogger(__name__)

Send = Callable[[int, dict[str, float]], None]


class Connection(NamedTuple):
    """An open run of a tool."""

    send: Send  # numbers of an optimizer step
    close: Callable[[], None]
    errors: tuple[type[Exception], ...] = ()  # what the tool raises beside Python's own


class Tracker:
    """A listener that sends every finite number of each record to a tool, against the optimizer step.

    A run calls it between two steps, when the record is on disk, so the tool cannot change what is trained or logged.
    If the tool fails, a warning says so, nothing more is sent, and the run goes on.
    """

    def __init__(self, tool: str, connection: Connection) -> None:
        self.tool, self._connection, self._is_open = tool, connection, True

    def __call__(self, record: Record) -> None:
        """Send a record of `metrics.jsonl`."""
        if self._is_open:
            numbers = {name: float(value) for name, value in record.items() if _is_finite(value)}
            self._try(f"at step {record['step']}", lambda: self._connection.send(record["step"], numbers))

    def close(self) -> None:
        """Let the tool write what it still holds. wandb and trackio do it by themselves when Python ends."""
        if self._is_open:
            self._try("as it was closed", self._connection.close)
            self._is_open = False

    def _try(self, when: str, act: Callable[[], None]) -> None:
        try:
            act()
        except (OSError, RuntimeError, ValueError, TypeError, *self._connection.errors) as error:
            self._is_open = False
            logger.warning(
                "%s failed %s (%s: %s): nothing more is sent to it; the run goes on, its directory has every record",
                self.tool, when, type(error).__name__, printable(str(error)),
            )  # fmt: skip


def tracker(tool: str, *, project: str, name: str, config: Mapping[str, Any] | None = None) -> Tracker:
    """A listener that sends a run's metrics to a tool.

    Args:
        tool: a name in `TRACKERS`.
        project: what the tool groups runs by; of TensorBoard the folder that it looks at.
        name: of the run there; of TensorBoard the folder within.
        config: shown beside the metrics, such as the contents of the run's `config.json`.

    Raises:
        ValueError: for another tool.
        ImportError: if it is not installed; the message says how to do that.

    Example::

        run.listeners.append(tracker("wandb", project="semi-online", name="dpo s=10"))
    """
    if tool not in TRACKERS:
        raise ValueError(f"expected a tracker out of {', '.join(TRACKERS)}, came {tool!r}")
    return Tracker(tool, TRACKERS[tool](project, name, dict(config or {})))


def _wandb(project: str, name: str, config: dict[str, Any]) -> Connection:
    """Where it writes and whether it goes online is wandb's own setting: WANDB_DIR, WANDB_MODE."""
    wandb = _package("wandb", "wandb")
    run = wandb.init(project=project, name=name, config=config, reinit="create_new")  # beside another one, as of a fork
    run.define_metric("*", step_metric="step")

    def send(step: int, numbers: dict[str, float]) -> None:
        run.log(numbers)  # `step` is one of them

    return Connection(send, run.finish, (wandb.Error,))


def _trackio(project: str, name: str, config: dict[str, Any]) -> Connection:
    """On this machine, under TRACKIO_DIR. It knows one run a process: a second tracker ends the first."""
    run = _package("trackio", "trackio").init(project=project, name=name, config=config, embed=False)

    def send(step: int, numbers: dict[str, float]) -> None:
        run.log({metric: value for metric, value in numbers.items() if metric != "step"}, step=step)

    return Connection(send, run.finish)


def _tensorboard(project: str, name: str, config: dict[str, Any]) -> Connection:
    """`tensorboard --logdir PROJECT` shows it, while the run trains too."""
    writer = _package("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(Path(project) / name))
    writer.add_text("config", f"```json\n{json.dumps(config, indent=2, default=str)}\n```")

    def send(step: int, numbers: dict[str, float]) -> None:
        for metric, value in numbers.items():
            if metric != "step":
                writer.add_scalar(metric, value, step)
        writer.flush()

    return Connection(send, writer.close)


def _package(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"expected the package {package} to be installed: `pip install {package}` in this environment ({error})"
        ) from error


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


TRACKERS: dict[str, Callable[[str, str, dict[str, Any]], Connection]] = {
    "trackio": _trackio,
    "wandb": _wandb,
    "tensorboard": _tensorboard,
}
