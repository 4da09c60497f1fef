"""A run: a training with a directory, a length, and someone who may watch it, change it and fork it."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kit.checkpoint import list_checkpoints
from kit.combinations import check_settings
from kit.config import RunConfig
from kit.controls import Controls
from kit.costs import weight_counts
from kit.doctor import Doctor, Finding, Parts, Setup, check_parts, tell
from kit.fork import fork_directory, free_sibling, recorded_controls
from kit.interrupt import deferred_interrupt
from kit.models.policy import save_policy
from kit.models.weights import digest
from kit.objectives import Objective
from kit.reference import ReferenceStart
from kit.rewards.combine import function_name
from kit.runlog import RunLog, as_json, describe
from kit.samplers import SamplerFactory, TransformersSampler
from kit.settings import Settings
from kit.sync import Drift, Never, Schedule
from kit.tasks.task import Portion, Task
from kit.trainer import TrainerFactory, in_process
from kit.training import Record, Training
from kit.types import Group
from kit.workload import described


class Run:
    """One training run of one policy, resumable at any instant.

    Args:
        config: sizes, optimizer, seed.
        task: prompts and reward functions; or several tasks with the share of each. A run on several evaluates each of
            them, and logs what belongs to one of them under `task/{name}/`.
        objective: `kit.objectives.DPO(...)`, `GRPO(...)`, or another.
        sync: when the policy's weights are copied into the sampler: `Never()` is offline, `Every(1)` online.
        ref_sync: the same for the reference, independent of `sync`; default never.
        ref_mixup_alpha: how far the reference then moves to the policy, in (0, 1]; 1 copies, less averages.
        ref_start: what the reference is until then: "policy", what the run starts from, or "base", the model without
            the adapter: another thing where the run goes on from a trained adapter.
        sampler: what generates, made from the policy and its tokenizer.
        trainer: what trains; default in this process. It is no part of what a run is: one may go on with another.
        out_dir: the run directory. If it holds this very run, unfinished, the run goes on from its last checkpoint.

    Attributes:
        controls: pause and knobs for whoever watches; see `kit.controls`.
        listeners: functions that are called with every new record, between two steps.

    Raises:
        ValueError, FileNotFoundError, RunDirectoryError, CheckpointError: before any work, if the run cannot start.
    """

    def __init__(
        self, config: RunConfig, *, task: Task | Sequence[Portion], objective: Objective, sync: Schedule,
        ref_sync: Schedule | None = None, ref_mixup_alpha: float = 1.0, ref_start: ReferenceStart = "policy",
        sampler: SamplerFactory = TransformersSampler, trainer: TrainerFactory = in_process, out_dir: str | Path,
    ) -> None:  # fmt: skip
        ref_sync = Never() if ref_sync is None else ref_sync
        self._original = Settings(config, objective, sync)
        self._check = partial(check_settings, original=self._original, ref_sync=ref_sync, ref_start=ref_start)
        self._check(self._original)
        self._parts = {"task": task, "ref_sync": ref_sync, "ref_mixup_alpha": ref_mixup_alpha, "ref_start": ref_start}
        self._parts |= {"sampler": sampler, "trainer": trainer}
        self.training = training = Training(self._original, **self._parts)
        self.policy, self.sampler, self.reference = training.policy, training.sampler, training.trainer.reference
        asked = {"task": described(task), "objective": describe(objective), "sync": describe(sync)}
        asked |= {"ref_sync": describe(ref_sync), "ref_mixup_alpha": ref_mixup_alpha, "ref_start": ref_start}
        asked |= {"sampler": as_json(sampler), "model_digest": digest(self.policy.state_dict())}
        self.log = RunLog(Path(out_dir), dataclasses.asdict(config) | asked)
        functions = [function for workload in training.workloads for function in workload.functions]
        self.doctor = Doctor(Setup.of(config, objective, [function_name(function) for function in functions]))
        self.listeners: list[Callable[[Record], None]] = []
        self._unheard: list[Record] = []
        self.controls = Controls(self._original, self._check, recorded_controls(self.log.path))
        self._resume()
        if self.step == 0:  # a resumed run was told
            prompts = [prompt for workload in training.workloads for prompt in workload.prompts]
            model = (self.policy.config, self.policy.generation_config, self.policy)
            self._tell(check_parts(Parts(training.tokenizer, *model, prompts, functions, config, objective, sync)))

    @property
    def step(self) -> int:
        """Optimizer updates applied."""
        return self.training.step

    @property
    def drift(self) -> Drift | None:
        """Of the policy from the sampler, where the schedule asks for it."""
        return self.training.drift

    @property
    def config(self) -> RunConfig:
        """With what was changed by hand."""
        return self.training.settings.config

    def steps(self, count: int) -> Iterator[Record]:
        """Train up to `count` steps, yielding each step's record; leaving the loop pauses the run.

        Ctrl-C ends at the next step boundary, with a checkpoint, as KeyboardInterrupt. A second one ends at once; after
        it, as after an error, make the run again to go on from its last checkpoint.
        """
        last = min(self.step + count, self.config.max_steps)
        while self.step < last:
            with self._between_steps():
                self.controls.wait(lambda: self.log.status("paused", self.step))
                self._take_controls()
            with deferred_interrupt() as interrupted:
                record = self._recorded_step()
                while interrupted() and self.training.is_mid_batch:  # a checkpoint holds no half-used batch
                    record = self._recorded_step()
                if self.step % self.config.save_steps == 0 or self.step == self.config.max_steps:
                    self._save()
            with self._between_steps():
                if interrupted():
                    raise KeyboardInterrupt
                heard, self._unheard = self._unheard, []
                for listener in self.listeners:
                    for logged in heard:
                        listener(logged)
            yield record

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        """Here a Ctrl-C finds the run whole: it is kept as it is, and the reason written down."""
        try:
            yield
        except KeyboardInterrupt:
            if not self.training.is_mid_batch:
                self._save()
            self.log.event("interrupt", step=self.step)
            self.log.status("finished" if self.step == self.config.max_steps else "interrupted", self.step)
            raise

    def finish(self) -> Record:
        """Run to the end; returns the last record: the evaluation of the policy after all its updates."""
        for _ in self.steps(self.config.max_steps):
            pass
        return self.log.metrics()[-1]

    def fork(
        self,
        step: int | None = None,
        *,
        out_dir: str | Path | None = None,
        max_steps: int | None = None,
        **changes: Any,
    ) -> "Run":
        """A second run that shares the first steps of this one and goes on with other values for some knobs.

        Args:
            step: of a checkpoint of this run; None = where it stands.
            out_dir: the fork's directory; default `{out_dir}_fork1`, or the next number, beside this run's.
            max_steps: where the fork ends; default like this run.
            changes: knobs of `kit.settings.CHANGEABLE` and their values from there on.

        Raises:
            ValueError, TypeError: for a knob that this run does not have, or a value that it cannot have.
            RunDirectoryError: if there is no checkpoint at `step`, or `out_dir` exists.
        """
        self._check(self.training.settings.changed(changes))
        original, start = self._original, self.step if step is None else step
        config = original.config if max_steps is None else dataclasses.replace(original.config, max_steps=max_steps)
        if config.max_steps <= start:
            raise ValueError(f"expected max_steps above {start}, where the fork starts, came {config.max_steps}")
        if step is None:
            if self.training.is_mid_batch:
                raise ValueError(f"step {start} is in the middle of a batch (reuse_epochs): make another step first")
            self._save()
        target = free_sibling(self.log.path, "fork") if out_dir is None else Path(out_dir)
        fork_directory(self.log.path, target, start, changes, max_steps=max_steps)
        return Run(config, objective=original.objective, sync=original.sync, out_dir=target, **self._parts)

    def save_policy(self, folder: Path) -> None:
        """Write the policy as it is now and its tokenizer, as a folder that transformers, and another run, can load."""
        self.training.trainer.pull()
        save_policy(self.policy, self.sampler.tokenizer, folder)

    def _recorded_step(self) -> Record:
        """A step; whatever stops it in the middle is written down, and raised with what to do."""
        try:
            record, batch = self.training.advance(self.log)
            self._log(record, batch.groups)
            if self.step == self.config.max_steps:
                self._log(self.training.evaluate(self.log))
        except Exception as error:
            self.log.event("error", step=self.step, error=f"{type(error).__name__}: {error}"[:500])
            self.log.status("failed", self.step)
            error.add_note(
                f"At step {self.step} of {self.log.path}, whose records up to there are whole: make the run again with "
                "the same out_dir to go on from its last checkpoint."
            )
            raise
        except KeyboardInterrupt:  # a second Ctrl-C, in the middle of a step
            self.log.event("interrupt", step=self.step)
            self.log.status("interrupted", self.step)
            raise
        self.log.status("finished" if self.step == self.config.max_steps else "running", self.step)
        return record

    def _take_controls(self) -> None:
        """What was changed by hand since the step before takes effect, and is written down."""
        if self.training.is_mid_batch:  # its completions were drawn and selected under the settings of before
            return
        settings, changes = self.controls.take(self.step)
        if changes:
            self.log.event("control", step=self.step, changes=changes)
        if settings != self.training.settings:
            self.training.change(settings)
            self.doctor.setup = dataclasses.replace(self.doctor.setup, beta=getattr(settings.objective, "beta", None))

    def _log(self, record: Record, groups: Sequence[Group] = ()) -> None:
        """Write a step's record, after what the doctor says of it: one that is no number cannot be written."""
        self._tell(self.doctor.examine(record, groups))
        self.log.log(record)
        self._unheard.append(record)

    def _tell(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self.log.event("doctor", **finding.details())
            tell(finding)

    def _save(self) -> None:
        self.training.save(self.log.path / "checkpoints")

    def _resume(self) -> None:
        """Go on from the last checkpoint, or from the start if a run was killed before its first one."""
        checkpoints = list_checkpoints(self.log.path / "checkpoints")
        if checkpoints:
            self.training.load(checkpoints[-1])
        if self.step < self.config.max_steps:  # a finished run has nothing to repeat
            self.log.rewind(self.step)
            self.doctor.replay(self.log.metrics())
            self.log.status("running", self.step)
        self._take_controls()
        if checkpoints:
            self.log.event("resume", step=self.step)
        else:
            self.log.event("start", step=self.step, weights=weight_counts(self.policy))
