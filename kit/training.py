"""A policy in training: the algorithm of the paper, one optimizer step at a time."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kit.checkpoint import Position, load_checkpoint, save_checkpoint
from kit.gap import measure_gap
from kit.models.policy import load_policy, precision
from kit.recording import Recorder
from kit.reference import Reference, ReferenceStart
from kit.rollouts import Batch
from kit.runlog import Clock, RunLog
from kit.samplers import SamplerAhead, SamplerFactory, SyncError, Upcoming
from kit.settings import Settings
from kit.sync import Drift, Schedule, SyncState
from kit.tasks.task import Portion, Task
from kit.trainer import TrainerFactory
from kit.workload import evaluate_all, new_batch, workloads_of

Record = dict[str, Any]
EVALUATION = 1  # sets the randomness of evaluations apart from that of training, under one run seed


class Training:
    """Policy, sampler, trainer and tasks of a run, and where it stands.

    It knows neither how long the run is to be nor who watches it: that is `kit.run.Run`, which also explains the
    arguments.

    Attributes:
        step: optimizer updates applied.
        drift: of the policy from the sampler, where the schedule asks for it.
    """

    def __init__(
        self, settings: Settings, *, task: Task | Sequence[Portion], ref_sync: Schedule, ref_mixup_alpha: float,
        ref_start: ReferenceStart, sampler: SamplerFactory, trainer: TrainerFactory,
    ) -> None:  # fmt: skip
        self.settings, config, objective = settings, settings.config, settings.objective
        torch.set_num_threads(config.num_threads)
        self.policy, self.tokenizer = load_policy(
            config.model_name_or_path, lora=config.lora, quantization=config.quantization, bf16=config.bf16,
            device=config.device, seed=config.seed,
        )  # fmt: skip
        self.sampler, self.recorder = sampler(self.policy, self.tokenizer), Recorder(self.tokenizer)
        self.workloads = workloads_of(task, config)
        for workload in self.workloads:
            if workload.count:
                objective.check(workload.group_size)
            self.sampler.check_lengths([*workload.prompts, *workload.held_out], workload.sampling)
        make_reference = partial(Reference, schedule=ref_sync, mixup_alpha=ref_mixup_alpha, start=ref_start)
        self.trainer = trainer(self.policy, objective, make_reference if objective.needs_reference else None, config)
        self.step = 0
        self.drift: Drift | None = None
        self._batch: Batch | None = None

    def change(self, settings: Settings) -> None:
        """Go on with other settings, from the next step on."""
        self.settings = settings
        self.trainer.change(settings.config, settings.objective)
        for workload in self.workloads:
            workload.config = settings.config

    @property
    def is_mid_batch(self) -> bool:
        """Whether the next step makes another pass over the batch at hand; a checkpoint holds no half-used batch."""
        return self.step % self.settings.config.reuse_epochs > 0

    def advance(self, log: RunLog) -> tuple[Record, Batch]:
        """One optimizer step: its record, and the batch that it trained on. Receipts and completions go to the log.

        Raises:
            SyncError, NonFiniteError: if the step cannot be made.
        """
        with precision(self.policy, bf16=self.settings.config.bf16):
            return self._advance(log)

    def _advance(self, log: RunLog) -> tuple[Record, Batch]:
        """The algorithm of the paper, in its order."""
        config, step, clock = self.settings.config, self.step, Clock()
        record: Record = {"step": step}
        if step % config.eval_steps == 0:
            record |= self._evaluate(log)
            clock.lap("eval")
        if self._batch is None or not self.is_mid_batch:
            self._batch = self._new_batch(log, clock)
        batch = self._batch
        ref_version = self.trainer.follow(step, self.sampler.version)
        if ref_version is not None:
            record |= {"sync/ref_version": ref_version}
        age, max_age = step - batch.version, config.max_age
        examples = batch.examples if max_age is None or age <= max_age else ()
        record |= batch.metrics | {"sync/version": batch.version, "sync/staleness": age}
        record |= {"reuse_epoch": step % config.reuse_epochs, "examples/too_old": len(batch.examples) - len(examples)}
        trained = sum(len(rollout.completion_ids) for example in examples for rollout in example.rollouts)
        record |= {"num_trained_tokens": trained}
        if record["reuse_epoch"]:  # nothing was generated
            record |= {"num_completions": 0, "num_tokens": 0}
        if config.gap_steps and step % config.gap_steps == 0:
            rollouts = [rollout for group in batch.groups[: config.drift_prompts] for rollout in group.rollouts]
            sizes = {"sampling": config.sampling, "micro_batch_size": config.micro_batch_size}
            record |= measure_gap(self.policy, self.sampler.weights, rollouts, **sizes).metrics()
            clock.lap("gap")
        try:
            record |= self.trainer.update(examples, batch.totals, step)
            if self.settings.sync.needs_drift:
                self.drift = self.trainer.drift(batch.groups[: config.drift_prompts])
                record |= {"sync/drift": self.drift.kl, "sync/drift_m2": self.drift.m2}
            clock.lap("train")
        finally:  # the rollouts of an update that failed are those that one wants to see
            if not record["reuse_epoch"]:
                log.rollouts(step, self.recorder.rollouts(batch, examples, self.trainer.before))
            clock.lap("log")
        self.step += 1
        return record | clock.laps | {"memory/peak": self.trainer.peak_memory()}, batch

    def evaluate(self, log: RunLog) -> Record:
        """Of the policy as it is now, on every task: a record without an update."""
        clock = Clock()
        with precision(self.policy, bf16=self.settings.config.bf16):
            return {"step": self.step} | self._evaluate(log) | clock.lap("eval")

    def _new_batch(self, log: RunLog, clock: Clock) -> Batch:
        """Sync if due, generate, score, select."""
        settings, config, step = self.settings, self.settings.config, self.step
        if settings.sync.due(SyncState(step, self.sampler.version, self.drift)):
            self._sync(log)
        clock.lap("sync")
        ahead = self.sampler if isinstance(self.sampler, SamplerAhead) else None
        if ahead:
            ahead.expect(self._upcoming())
        number, seed = step // config.reuse_epochs, (config.seed, step)
        batch = new_batch(self.workloads, self.sampler, settings.objective, number, seed=seed, clock=clock)
        if ahead:
            clock.laps["busy/sampler"], ahead.busy = ahead.busy, 0.0
            for incident in ahead.incidents:
                log.event("sampler", step=step, incident=incident)
            ahead.incidents.clear()
        if settings.objective.needs_prox_logprobs and config.reuse_epochs > 1:
            batch = dataclasses.replace(batch, examples=self.trainer.with_prox_logprobs(batch.examples))
            clock.lap("select")
        return batch

    def _upcoming(self) -> Iterator[Upcoming]:
        """This batch, and those that follow it.

        Where the schedule looks at the drift, which is not known yet, one batch is guessed to come before the sync.
        """
        config, sync = self.settings.config, self.settings.sync
        is_after_sync = False
        for step in range(self.step, config.max_steps, config.reuse_epochs):
            if sync.needs_drift:
                is_after_sync = step > self.step + config.reuse_epochs
            elif step > self.step:
                is_after_sync = is_after_sync or sync.due(SyncState(step, self.sampler.version))
            number, seed = step // config.reuse_epochs, (config.seed, step)
            asked = (request for workload in self.workloads for request in workload.requests(number, seed=seed))
            yield Upcoming(tuple(asked), is_after_sync)

    def _sync(self, log: RunLog) -> None:
        self.trainer.pull()
        try:
            receipt = self.sampler.sync(self.policy, self.step, step=self.step)
        except SyncError as error:
            log.receipt(dataclasses.asdict(error.receipt))
            raise
        log.receipt(dataclasses.asdict(receipt))

    def _evaluate(self, log: RunLog) -> Record:
        """Every task's evaluation; its completions are kept, so that runs can be compared afterwards."""
        self.trainer.pull()
        with self.sampler.fresh(self.policy) as fresh:
            record, groups = evaluate_all(
                self.workloads, fresh, seed=(self.settings.config.seed, self.step, EVALUATION)
            )
        for task, found in groups.items():
            log.completions(self.step, task, self.recorder.completions(found))
        return record

    def save(self, folder: Path) -> Path:
        """Write a checkpoint. Randomness needs no state: every draw derives from (seed, step)."""
        parts = {**self.trainer.parts(), "sampler": self.sampler.weights.tensors()}
        position = Position(self.step, self.sampler.version, self.trainer.ref_version or 0, self.drift)
        return save_checkpoint(folder, position, parts, keep=self.settings.config.save_total_limit)

    def load(self, checkpoint: Path) -> None:
        """Stand where a checkpoint was made.

        Raises:
            CheckpointError: if it is damaged.
        """
        position, parts = load_checkpoint(checkpoint)
        self.trainer.load(parts, position.ref_version)
        self.sampler.restore(parts["sampler"], position.sampler_version)
        self.step = position.step
        self.drift = Drift(*position.drift) if position.drift else None
