"""A run whose trainer ranks and samplers are processes of their own, on this machine or on a cluster."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kit.config import RunConfig
from kit.distributed.cluster import Cluster
from kit.distributed.ranks import Ranks
from kit.distributed.replicas import Replicas
from kit.objectives import Objective
from kit.reference import ReferenceStart
from kit.run import Run
from kit.runlog import as_json
from kit.samplers import SamplerFactory, TransformersSampler
from kit.sync import Schedule
from kit.tasks.task import Portion, Task


def launch(
    config: RunConfig, *, trainers: int = 1, samplers: int = 1, address: str | None = None, depth: int = 2,
    ahead: int = 0, deadline: float = 600.0, task: Task | Sequence[Portion], objective: Objective, sync: Schedule,
    ref_sync: Schedule | None = None, ref_mixup_alpha: float = 1.0, ref_start: ReferenceStart = "policy",
    sampler: SamplerFactory = TransformersSampler, out_dir: str | Path,
) -> Run:  # fmt: skip
    """A `kit.run.Run` like any other: its loop, controls, run directory and resuming are the same.

    The policy here is a copy on this machine's CPU, up to date after a sync, an evaluation or a checkpoint. The numbers
    of trainers and samplers are no part of what the run is: made again with others it goes on from its checkpoint. Its
    numbers are those of one process up to how sums round, because other micro-batches and prompts are computed
    together.

    Args:
        trainers: ranks that share the examples of a step and shard the weights, FSDP2; each on a GPU of its own where
            `config.device` is "cuda". The meaning of `micro_batch_size` is per rank.
        samplers: that share the prompts of a step, each on a GPU of its own likewise.
        address: of a Ray cluster that exists, such as "auto" or "10.0.0.1:6379"; None = processes of this machine. On
            every machine the kit, the same versions and the model at the same path.
        depth, ahead: batches drawn while the policy trains; see `kit.samplers.Overlapped`.
        deadline: seconds after which a process that does not answer counts as dead: more than the longest step takes.
        sampler: of each sampler process; it must be a value that can be sent there.
        config, task, objective, sync, ref_sync, ref_mixup_alpha, ref_start, out_dir: as of `Run`.

    Raises:
        ValueError: for what cannot be done on several processes.
        ImportError, ConnectionError, RuntimeError: without Ray, a cluster, or room on it; it says what is missing.
        ActorFailed: if a process dies: always of a trainer, of a sampler only when it was replaced in vain.
    """
    _check(config, trainers=trainers, samplers=samplers, deadline=deadline)
    device = config.device.partition(":")[0]
    gpus = trainers + samplers if device != "cpu" else 0
    cluster = Cluster(address, cpus=trainers + samplers, gpus=gpus, deadline=deadline)
    here = replace(config, device="cpu")
    with ExitStack() as on_failure:
        on_failure.callback(cluster.close)  # or its actors would stay until the exception is forgotten
        run = Run(
            here, task=task, objective=objective, sync=sync, ref_sync=ref_sync, ref_mixup_alpha=ref_mixup_alpha,
            ref_start=ref_start, out_dir=out_dir,
            trainer=partial(Ranks, cluster=cluster, count=trainers, device=device),
            sampler=_Samplers(sampler, cluster, samplers, device, here, depth, ahead),
        )  # fmt: skip
        on_failure.pop_all()
    run.log.event("launch", step=run.step, trainers=trainers, samplers=samplers, device=device)
    return run


def _check(config: RunConfig, *, trainers: int, samplers: int, deadline: float) -> None:
    if trainers < 1 or samplers < 1 or not deadline > 0:
        raise ValueError(
            f"expected trainers >= 1, samplers >= 1 and deadline > 0, came {trainers}, {samplers} and {deadline}"
        )
    if ":" in config.device:
        raise ValueError(
            f"expected the device cpu or cuda, came {config.device!r}: each process is given one of its own"
        )
    for name, wrong in {
        "quantization": config.quantization is not None,
        "optim": config.optim != "adamw_torch",
        "gap_steps": config.gap_steps is not None,
    }.items():
        if wrong:
            raise ValueError(
                f"{name}={getattr(config, name)!r} works in one process only: leave it at its default, or make a "
                "`kit.run.Run`"
            )


@dataclass(frozen=True)
class _Samplers:
    """A SamplerFactory; what a run directory says of it is what each of them is."""

    sampler: SamplerFactory
    cluster: Cluster
    count: int
    device: str
    config: RunConfig
    depth: int
    ahead: int

    def __call__(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Replicas:
        return Replicas(
            policy, tokenizer, cluster=self.cluster, count=self.count, device=self.device, config=self.config,
            factory=self.sampler, depth=self.depth, ahead=self.ahead,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        return {"sampler": as_json(self.sampler)}
