"""The run loop, once: sync, generate, score, select, learn, log."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from kit.checkpoint import (
    Position,
    list_checkpoints,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from kit.combinations import check_combination
from kit.config import RunConfig
from kit.doctor import Doctor, Finding, Parts, Setup, check_parts, tell
from kit.gap import measure_gap
from kit.interrupt import deferred_interrupt
from kit.learner import Learner
from kit.models.adapters import save_adapter
from kit.models.policy import load_policy
from kit.models.weights import POLICY, copy_weights, digest, has_adapter, weights_of
from kit.objectives import Objective
from kit.recording import Recorder
from kit.reference import Reference, ReferenceStart
from kit.rewards.combine import function_name
from kit.rollouts import Batch, group_metrics, task_metrics, totals_of
from kit.runlog import Clock, RunLog, as_json, describe
from kit.samplers import SamplerFactory, SyncError, TransformersSampler
from kit.sync import Drift, Never, Schedule, SyncState
from kit.tasks.task import Portion, Task
from kit.types import Group
from kit.workload import described, workloads_of

Record = dict[str, Any]
EVALUATION = 1  # sets the randomness of evaluations apart from that of training, under one run seed


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
        out_dir: the run directory. If it holds this very run, unfinished, the run goes on from its last checkpoint.

    Raises:
        ValueError, FileNotFoundError, RunDirectoryError, CheckpointError: before any work, if the run cannot start.
    """

    def __init__(
        self, config: RunConfig, *, task: Task | Sequence[Portion], objective: Objective, sync: Schedule,
        ref_sync: Schedule | None = None, ref_mixup_alpha: float = 1.0, ref_start: ReferenceStart = "policy",
        sampler: SamplerFactory = TransformersSampler, out_dir: str | Path,
    ) -> None:  # fmt: skip
        ref_sync = Never() if ref_sync is None else ref_sync
        check_combination(config, objective, sync, ref_sync, ref_start)
        torch.set_num_threads(config.num_threads)
        self.config, self.objective, self.sync = config, objective, sync
        self.policy, tokenizer = load_policy(
            config.model_name_or_path, lora=config.lora, quantization=config.quantization, bf16=config.bf16,
            device=config.device, seed=config.seed,
        )  # fmt: skip
        self.sampler, self.recorder = sampler(self.policy, tokenizer), Recorder(tokenizer)
        self.workloads = workloads_of(task, config)
        for workload in self.workloads:
            if workload.count:
                objective.check(workload.group_size)
            self.sampler.check_lengths([*workload.prompts, *workload.held_out], workload.sampling)
        ref_arguments = (self.policy, ref_sync, ref_mixup_alpha)
        self.reference = Reference(*ref_arguments, start=ref_start) if objective.needs_reference else None
        self.learner = Learner(self.policy, objective, self.reference, config)
        asked = {"task": described(task), "objective": describe(objective), "sync": describe(sync)}
        asked |= {"ref_sync": describe(ref_sync), "ref_mixup_alpha": ref_mixup_alpha, "ref_start": ref_start}
        asked |= {"sampler": as_json(sampler), "model_digest": digest(self.policy.state_dict())}
        self.log = RunLog(Path(out_dir), dataclasses.asdict(config) | asked)
        functions = [function for workload in self.workloads for function in workload.functions]
        self.doctor = Doctor(Setup.of(config, objective, [function_name(function) for function in functions]))
        self.step = 0  # updates applied
        self.drift: Drift | None = None
        self._batch: Batch | None = None
        self._resume()
        if self.step == 0:  # a resumed run was told
            prompts, settings = [p for w in self.workloads for p in w.prompts], self.policy.generation_config
            model = (self.policy.config, settings, self.policy)
            self._tell(check_parts(Parts(tokenizer, *model, prompts, functions, config, objective, sync)))

    def steps(self, count: int) -> Iterator[Record]:
        """Train up to `count` steps, yielding each step's record; leaving the loop pauses the run.

        Ctrl-C ends at the next step boundary, with a checkpoint, as KeyboardInterrupt. A second one ends at once; after
        it, as after an error, make the run again to go on from its last checkpoint.
        """
        last = min(self.step + count, self.config.max_steps)
        while self.step < last:
            with deferred_interrupt() as interrupted:
                record = self._recorded_step()
                while interrupted() and self._is_mid_batch():  # a checkpoint holds no half-used batch
                    record = self._recorded_step()
                is_due = self.step % self.config.save_steps == 0 or self.step == self.config.max_steps
                if interrupted() or is_due:
                    self._save()
            if interrupted():
                self.log.event("interrupt", step=self.step)
                self.log.status("finished" if self.step == self.config.max_steps else "interrupted", self.step)
                raise KeyboardInterrupt
            yield record

    def finish(self) -> Record:
        """Run to the end; returns the last record: the evaluation of the policy after all its updates."""
        for _ in self.steps(self.config.max_steps):
            pass
        return self.log.metrics()[-1]

    def save_policy(self, folder: Path) -> None:
        """Write the policy as it is now and its tokenizer, as a folder that transformers, and another run, can load.

        With adapters in training it is a PEFT folder: of the adapter alone, and the name of the model it belongs to.
        """
        if has_adapter(self.policy):
            save_adapter(weights_of(self.policy), self.policy.peft_config[POLICY], folder)
        else:
            self.policy.save_pretrained(folder)
        self.sampler.tokenizer.save_pretrained(folder)

    def _recorded_step(self) -> Record:
        """A step; whatever stops it in the middle is written down, and raised with what to do."""
        try:
            with self._precision():
                return self._step()
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

    def _step(self) -> Record:
        """One optimizer step: the algorithm of the paper, in its order."""
        config, step, clock = self.config, self.step, Clock()
        record: Record = {"step": step}
        if step % config.eval_steps == 0:
            record |= self._evaluate()
            clock.lap("eval")
        if self._batch is None or not self._is_mid_batch():
            self._batch = self._new_batch(clock)
        batch = self._batch
        if self.reference:
            self.reference.maybe_sync(self.policy, step, self.sampler.version)
            record |= {"sync/ref_version": self.reference.version}
        age, max_age = step - self.sampler.version, config.max_age
        examples = batch.examples if max_age is None or age <= max_age else ()
        record |= batch.metrics | {"sync/version": self.sampler.version, "sync/staleness": age}
        record |= {"reuse_epoch": step % config.reuse_epochs, "examples/too_old": len(batch.examples) - len(examples)}
        if record["reuse_epoch"]:  # nothing was generated
            record["num_tokens"] = 0
        if config.gap_steps and step % config.gap_steps == 0:
            rollouts = [rollout for group in batch.groups[: config.drift_prompts] for rollout in group.rollouts]
            sizes = {"sampling": config.sampling, "micro_batch_size": config.micro_batch_size}
            record |= measure_gap(self.policy, self.sampler.weights, rollouts, **sizes).metrics()
            clock.lap("gap")
        try:
            record |= self.learner.update(examples, batch.totals, step)
            if self.sync.needs_drift:
                self.drift = self.learner.drift(batch.groups[: config.drift_prompts])
                record |= {"sync/drift": self.drift.kl, "sync/drift_m2": self.drift.m2}
            clock.lap("train")
        finally:  # the rollouts of an update that failed are those that one wants to see
            if not record["reuse_epoch"]:
                self.log.rollouts(step, self.recorder.rollouts(batch, examples, self.learner.before))
            clock.lap("log")
        record |= clock.laps
        self.step += 1
        self._log(record, batch.groups)
        if self.step == config.max_steps:
            self._log({"step": self.step} | self._evaluate() | clock.lap("eval"))
        self.log.status("finished" if self.step == config.max_steps else "running", self.step)
        return record

    def _precision(self) -> torch.autocast:
        """With bf16 and all weights in training, these stay float32 and are rounded for each product."""
        is_mixed = self.config.bf16 and not has_adapter(self.policy)
        # Without the cache, which would outlive an update and give the next pass the weights of before it.
        return torch.autocast(self.policy.device.type, torch.bfloat16, enabled=is_mixed, cache_enabled=False)

    def _log(self, record: Record, groups: Sequence[Group] = ()) -> None:
        """Write a step's record, after what the doctor says of it: one that is no number cannot be written."""
        self._tell(self.doctor.examine(record, groups))
        self.log.log(record)

    def _tell(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self.log.event("doctor", **finding.details())
            tell(finding)

    def _is_mid_batch(self) -> bool:
        """Whether the next step makes another pass over the batch at hand."""
        return self.step % self.config.reuse_epochs > 0

    def _new_batch(self, clock: Clock) -> Batch:
        """Sync if due, generate, score, select."""
        config, step = self.config, self.step
        if self.sync.due(SyncState(step, self.sampler.version, self.drift)):
            self._sync()
        clock.lap("sync")
        number = step // config.reuse_epochs
        generated = [w.generate(self.sampler, number, seed=(config.seed, step)) for w in self.workloads]
        clock.lap("generate")
        logged: dict[str, float] = {}
        pairs = zip(self.workloads, generated, strict=True)
        scored = [workload.score(groups, log_metric=logged.__setitem__) for workload, groups in pairs]
        groups = [group for of_task in scored for group in of_task]
        clock.lap("reward")
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        selected = [self.objective.select(group, generator) for group in groups]
        examples = [example for group_examples in selected for example in group_examples]
        if self.objective.needs_prox_logprobs and config.reuse_epochs > 1:
            examples = self.learner.with_prox_logprobs(examples)
        clock.lap("select")
        metrics = group_metrics(groups, selected) | {f"logged/{name}": value for name, value in logged.items()}
        if len(self.workloads) > 1:
            metrics |= task_metrics(groups, selected)
        return Batch(groups, selected, examples, totals_of(groups, examples), metrics)

    def _sync(self) -> None:
        try:
            receipt = self.sampler.sync(self.policy, self.step, step=self.step)
        except SyncError as error:
            self.log.receipt(dataclasses.asdict(error.receipt))
            raise
        self.log.receipt(dataclasses.asdict(receipt))

    def _evaluate(self) -> Record:
        """Every task's evaluation; its completions are kept, so that runs can be compared afterwards."""
        record: Record = {}
        with self.sampler.fresh(self.policy) as fresh:
            seed = (self.config.seed, self.step, EVALUATION)
            evaluations = [(workload, workload.evaluate(fresh, seed=seed)) for workload in self.workloads]
        for workload, found in evaluations:
            prefix = f"task/{workload.name}/" if len(self.workloads) > 1 else ""
            record |= {f"{prefix}{name}": value for name, value in found.metrics().items()}
            self.log.completions(self.step, workload.name, self.recorder.completions(found.groups))
        return record

    def _save(self) -> None:
        ref_version = self.reference.version if self.reference else 0
        parts = {
            "policy": weights_of(self.policy),
            "sampler": self.sampler.weights.tensors(),
            "optimizer": optimizer_tensors(self.learner.optimizer),
        }
        if self.reference:
            parts["reference"] = self.reference.weights.tensors()
        position = Position(self.step, self.sampler.version, ref_version, self.drift)
        save_checkpoint(self.log.path / "checkpoints", position, parts)

    def _resume(self) -> None:
        """Go on from the last checkpoint, or from the start if a run was killed before its first one."""
        checkpoints = list_checkpoints(self.log.path / "checkpoints")
        if checkpoints:
            position, parts = load_checkpoint(checkpoints[-1])
            copy_weights(parts["policy"], weights_of(self.policy))
            self.sampler.restore(parts["sampler"], position.sampler_version)
            load_optimizer_tensors(self.learner.optimizer, parts["optimizer"])
            self.step = position.step
            self.drift = Drift(*position.drift) if position.drift else None
            if self.reference:
                copy_weights(parts["reference"], self.reference.weights.tensors())
                self.reference.version = position.ref_version
        if self.step < self.config.max_steps:  # a finished run has nothing to repeat
            self.log.rewind(self.step)
            self.doctor.replay(self.log.metrics())
            self.log.status("running", self.step)
        self.log.event("resume" if checkpoints else "start", step=self.step)
