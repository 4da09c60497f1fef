"""The dashboard's curves for a training of TRL: `GRPOTrainer(..., callbacks=[LiveCallback()])`.

TRL's names of metrics are the kit's where the quantity is the same, so its logs are records almost as they come.
"""

import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kit.dashboard import LiveCurves
from kit.dashboard.messages import browser_poll
from kit.doctor import Doctor, Setup, tell

EVALUATED = {  # of fresh completions of the policy, where an evaluation draws some
    "eval_reward": "eval/reward",
    "eval_entropy": "eval/entropy",
    "eval_completions/mean_length": "eval/mean_length",
}
OTHERS = {"num_tokens"}  # TRL's adds up over the run, prompts included; the kit's is of a step's completions


class LiveCallback(TrainerCallback):
    """Shows curves in the cell that trains, marks what the doctor finds, and leaves a figure and tables in the file.

    Outside of a notebook nothing is shown; `curves.figure()` draws what was logged. With `logging_steps=1` every
    optimizer step is a point; of a larger value each point is TRL's mean over these steps, at the last of them.

    Args:
        label: what the run is called beside others.

    Attributes:
        curves: fed with each log; `add_run` and `push` put further runs on the same axes.
        doctor: as beside a run of the kit, from what TRL logs.
    """

    def __init__(self, label: str = "this run") -> None:
        self.curves, self.doctor = LiveCurves(label), Doctor()
        self._state = TrainerState()
        self._output = self.curves.output(lambda: f"{self._state.global_step} of {self._state.max_steps} steps")
        self._answer_browser = browser_poll()  # None outside of a notebook
        self._seconds, self._began = 0.0, 0.0  # of the steps since the log before; when the step at hand began

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:  # transformers passes model, optimizer and more to each of these methods
        """Show the curves in the cell that trains."""
        self._state = state
        is_dpo = not hasattr(args, "num_generations")  # GRPO's beta is the weight of its KL term
        self.doctor.setup = Setup(beta=getattr(args, "beta", None) if is_dpo else None)
        if self._answer_browser is not None and state.is_world_process_zero:
            self._output.show()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Between two steps the page may ask."""
        self._seconds += time.perf_counter() - self._began
        if self._answer_browser is not None:
            self._answer_browser()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        """A record from TRL's log: of training, or of an evaluation."""
        record = record_of(logs or {}, state.global_step)
        if len(record) == 1 or not state.is_world_process_zero:
            return
        if "loss" in record:
            record["time/train"], self._seconds = self._seconds, 0.0
        findings = self.doctor.examine(record)
        self.curves.push(record, [{"event": "doctor", **finding.details()} for finding in findings])
        for finding in findings:
            tell(finding)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep figure and tables in the file."""
        self._output.end()


def record_of(logs: Mapping[str, Any], global_step: int) -> dict[str, Any]:
    """What TRL logged after `global_step` updates, as a record; `step` alone for a log of neither a step nor samples.

    A record's step counts the updates before what it tells of: for the loss of the first update 0, and for an
    evaluation after it 1.

    >>> record_of({"loss": 0.7, "reward": 0.5, "num_tokens": 4096.0}, 1)
    {'step': 0, 'loss': 0.7, 'reward': 0.5}
    >>> record_of({"eval_loss": 0.6, "eval_reward": 0.5, "eval_runtime": 1.0}, 1)
    {'step': 1, 'eval/reward': 0.5}
    >>> record_of({"train_runtime": 9.0, "train_loss": 0.6}, 3)
    {'step': 3}
    """
    if "loss" in logs:
        return {"step": global_step - 1, **{name: value for name, value in logs.items() if name not in OTHERS}}
    is_fresh = "eval_reward" in logs  # an evaluation of pairs that are given has an entropy too, on those
    return {"step": global_step, **{EVALUATED[name]: logs[name] for name in EVALUATED if is_fresh and name in logs}}
