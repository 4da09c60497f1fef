"""The trainer of a run whose ranks are actors: to the run it is one."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from kit.checkpoint import Tensors
from kit.config import RunConfig
from kit.distributed.cluster import START_S, ActorFailed, Cluster, require_same_versions
from kit.distributed.rank import Rank
from kit.learner import Logprobs
from kit.models.weights import copy_weights, weights_of
from kit.objectives import Objective
from kit.reference import Reference
from kit.sync import Drift
from kit.trainer import MakeReference
from kit.types import Example, Group, Totals


class Ranks:
    """See `kit.trainer.Trainer`. The policy here is a copy of the ranks', as of the last `pull`.

    A rank that dies takes its shard with it, so the run stops; made again, it goes on from its last checkpoint.

    Args:
        count: of ranks, each on a GPU of its own where `device` is one.
        device: of the ranks: "cpu" or "cuda".

    Raises:
        ActorFailed: also from every method, if a rank dies or does not answer within the cluster's deadline.
    """

    def __init__(
        self, policy: PreTrainedModel, objective: Objective, make_reference: MakeReference | None, config: RunConfig, *,
        cluster: Cluster, count: int, device: str,
    ) -> None:  # fmt: skip
        self._policy, self._cluster, self._is_current = policy, cluster, True
        self.before: list[Logprobs] = []
        self.reference: Reference | None = None  # the ranks have it
        self.ref_version = 0 if make_reference else None
        gpus = int(device != "cpu")
        self.actors = [cluster.start(Rank, rank, count, gpus=gpus) for rank in range(count)]
        for rank, found in enumerate(self._all("versions", deadline=START_S)):
            require_same_versions(found, f"the machine of trainer rank {rank}")
        meeting_point = cluster.value(self.actors[0].meeting_point.remote(), "the meeting point of the trainer ranks")
        self._all("join", meeting_point, cluster.deadline)
        self._device = device
        self._all("build", self._theirs(config), objective, make_reference, deadline=START_S)

    def change(self, config: RunConfig, objective: Objective) -> None:
        self._call("change", self._theirs(config), objective)

    def follow(self, step: int, sampler_version: int) -> int | None:
        if self.ref_version is not None:
            self.ref_version = self._call("follow", step, sampler_version)
        return self.ref_version

    def update(self, examples: Sequence[Example], totals: Totals, step: int) -> dict[str, float]:
        self._is_current = self._is_current and not examples
        metrics, before = self._all("update", examples, totals, step)[0]
        flat = [rollout for example in examples for rollout in example.rollouts]
        self.before = [Logprobs([flat[number] for number in numbers], *found) for numbers, *found in before]
        return metrics

    def with_prox_logprobs(self, examples: Sequence[Example]) -> list[Example]:
        return self._call("with_prox_logprobs", examples)

    def drift(self, groups: Sequence[Group]) -> Drift:
        return self._call("drift", groups)

    def pull(self) -> None:
        if not self._is_current:
            copy_weights(self._all("parts", "policy")[0]["policy"], weights_of(self._policy))
            self._is_current = True

    def parts(self) -> Mapping[str, Tensors]:
        parts = self._all("parts")[0]
        copy_weights(parts["policy"], weights_of(self._policy))
        self._is_current = True
        return parts

    def load(self, parts: Mapping[str, Tensors], ref_version: int) -> None:
        self._call("load", {name: tensors for name, tensors in parts.items() if name != "sampler"}, ref_version)
        self.ref_version = None if self.ref_version is None else ref_version
        copy_weights(parts["policy"], weights_of(self._policy))
        self._is_current = True

    def peak_memory(self) -> int:
        """Of the rank that needed most."""
        return max(self._all("peak_memory"))

    def _theirs(self, config: RunConfig) -> RunConfig:
        return replace(config, device=self._device)

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._all("call", method, *arguments)[0]

    def _all(self, method: str, *arguments: Any, deadline: float | None = None) -> list[Any]:
        """Every rank's answer. If one fails the others wait for it in vain: all are ended."""
        import ray

        shared = [ray.put(argument) for argument in arguments]
        answers = [getattr(actor, method).remote(*shared) for actor in self.actors]
        with ExitStack() as on_failure:
            on_failure.callback(self._cluster.close)
            try:
                found = self._cluster.values(answers, f"`{method}` of {len(self.actors)} trainer ranks", deadline)
            except ActorFailed as error:
                raise ActorFailed(
                    f"{error}. The ranks hold a shard each, so none can go on without the others: make the run again, "
                    "with any number of trainers, to go on from its last checkpoint"
                ) from error
            on_failure.pop_all()
        return found
