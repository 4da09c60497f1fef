"""A trainer rank: one of several processes that hold a shard each of the policy, and share every step's examples."""

import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from kit.config import RunConfig
from kit.distributed.cluster import versions
from kit.learner import Learner
from kit.models.policy import load_policy, precision
from kit.models.sharding import shard_model
from kit.models.weights import ModelSnapshot, whole
from kit.objectives import Objective
from kit.trainer import MakeReference
from kit.types import Example, Totals

Before = list[tuple[list[int], torch.Tensor, torch.Tensor | None]]  # as `Logprobs`, rollouts by their number


class Ranked:
    """The ranks of the process group; see `kit.team.Team`."""

    def map(self, function: Callable[[Any, bool], Any], items: Sequence[Any]) -> list[Any]:
        rank, size = dist.get_rank(), dist.get_world_size()
        mine = [
            function(*((items[first + rank], True) if first + rank < len(items) else (items[0], False)))
            for first in range(0, len(items), size)
        ]
        gathered: list[Any] = [None] * size
        dist.all_gather_object(gathered, mine)
        return [gathered[index % size][index // size] for index in range(len(items))]


class Rank:
    """An actor. What it returns comes from the first rank; the others return None."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def versions(self) -> dict[str, str]:
        return versions()

    def meeting_point(self) -> str:
        """Where the ranks find each other: a free port of this one's machine."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def join(self, meeting_point: str, deadline: float) -> None:
        """Form the process group; every wait of one rank for another then ends by the deadline."""
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, init_method=meeting_point, rank=self.rank, world_size=self.size,
            timeout=timedelta(seconds=deadline),
        )  # fmt: skip

    def build(self, config: RunConfig, objective: Objective, make_reference: MakeReference | None) -> None:
        """Load the policy as every process does, make the reference of it, then shard both."""
        torch.set_num_threads(config.num_threads)
        device = torch.device(config.device).type
        policy, _ = load_policy(
            config.model_name_or_path, lora=config.lora, bf16=config.bf16, device="cpu", seed=config.seed
        )
        reference = make_reference(policy) if make_reference else None
        mesh = init_device_mesh(device, (self.size,))
        shard_model(policy, mesh)
        if reference and isinstance(reference.weights, ModelSnapshot):
            shard_model(reference.weights.model, mesh)
        self.learner = Learner(policy, objective, reference, config, team=Ranked())

    def call(self, method: str, *arguments: Any) -> Any:
        """A method of the learner."""
        with precision(self.learner.policy, bf16=self.learner.config.bf16):
            found = getattr(self.learner, method)(*arguments)
        return found if self.rank == 0 else None

    def update(self, examples: Sequence[Example], totals: Totals, step: int) -> tuple[dict[str, float], Before] | None:
        """The metrics of an update, and what the models said before it."""
        metrics = self.call("update", examples, totals, step)
        if self.rank:
            return None
        flat = [rollout for example in examples for rollout in example.rollouts]
        numbers = {id(rollout): number for number, rollout in enumerate(flat)}
        return metrics, [
            ([numbers[id(rollout)] for rollout in rollouts], policy.cpu(), None if ref is None else ref.cpu())
            for rollouts, policy, ref in self.learner.before
        ]

    def parts(self, *names: str) -> dict[str, dict[str, torch.Tensor]] | None:
        """These of `Learner.parts`, or all, put together from the shards."""
        found = {
            part: {name: whole(tensor).cpu() for name, tensor in tensors.items()}
            for part, tensors in self.learner.parts().items()
            if part in names or not names
        }
        return found if self.rank == 0 else None

    def peak_memory(self) -> int:
        return self.learner.peak_memory()
