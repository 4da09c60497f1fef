"""The sampler of a run that is several actors: to the run it is one.

Each holds the same weights, and draws its share of every request's prompts. Within a sync window they draw ahead, as
`kit.samplers.Overlapped` does. One that dies or stalls is replaced, is given the weights of the others, and draws anew
what the old one owed: that gives the same completions.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kit.config import RunConfig, Sampling
from kit.distributed.cluster import START_S, ActorFailed, Cluster, require_same_versions
from kit.distributed.replica import Replica
from kit.models.weights import copy_weights, snapshot, weights_of
from kit.samplers import Receipt, Request, Sampler, SamplerFactory, Upcoming
from kit.samplers.checksum import differing, summary, weight_checksums
from kit.samplers.drawn import DrawnAhead
from kit.types import Group, Prompt

ATTEMPTS = 3  # actors that are tried for one answer


@dataclass
class Shares:
    """A request in as many contiguous shares as there are samplers, and where their answers will be."""

    requests: list[Request]
    answers: dict[int, Any]  # by the number of the sampler; none for an empty share
    found: dict[int, tuple[list[Group], float]] = field(default_factory=dict)

    def cancel(self) -> None:
        import ray

        for answer in self.answers.values():
            ray.cancel(answer)


class Replicas:
    """See `kit.samplers.SamplerAhead`.

    Args:
        cluster: where the actors live.
        count: of samplers, each on a GPU of its own where `device` is one.
        device: of the samplers: "cpu" or "cuda".
        config, factory: what each makes its policy and its sampler from.
        depth, ahead: as of `kit.samplers.Overlapped`.

    Raises:
        ActorFailed: if a sampler was replaced in vain.
        SyncError: if weights did not reach one of them.
    """

    def __init__(
        self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, cluster: Cluster, count: int,
        device: str, config: RunConfig, factory: SamplerFactory, depth: int, ahead: int,
    ) -> None:  # fmt: skip
        self.weights, self.tokenizer, self.version = snapshot(policy, "behavior"), tokenizer, 0
        self.incidents: list[str] = []
        self.busy = 0.0
        self._cluster, self._gpus = cluster, int(device != "cpu")
        self._arguments = replace(config, device=device), factory
        self._drawn = DrawnAhead(self._draw, depth=depth, ahead=ahead)
        self._evaluated: tuple[Any, list[Shares]] | None = None  # weights of an evaluation, what is drawn with them
        self.actors = [self._start() for _ in range(count)]
        self._ready(range(count))

    def expect(self, batches: Iterable[Upcoming]) -> None:
        self._drawn.expect(batches)

    def generate(
        self, prompts: Sequence[Prompt], group_size: int, *, seed: tuple[int, ...], sampling: Sampling
    ) -> list[Group]:
        """See `Sampler.generate`; what was expected is there, or on its way."""
        drawn = self._drawn.first(Request(tuple(prompts), group_size, seed, sampling))
        groups, seconds = self._collected(drawn.answer, f"the batch of seed {seed}")
        del self._drawn.queue[0]
        self.busy += seconds
        return groups

    def sync(self, policy: PreTrainedModel, version: int, *, step: int) -> Receipt:
        """Send the weights to every sampler; the receipt is the worst of theirs, which it holds as `samplers`."""
        self._settle()
        source = weights_of(policy)
        sent, shipped = weight_checksums(source), _shipped(source)
        answers = self._all("sync", shipped, version, step, what="the receipts of a sync")
        arrived, receipts = zip(*answers, strict=True)
        # Only now: a sampler that was replaced meanwhile began with the weights of before, as the others did.
        tensors, delta_norm = copy_weights(source, self.weights.tensors())
        self.version = version
        lost = next((held for held in arrived if held != sent), None)
        receipt = Receipt(
            step, version, tensors, delta_norm, summary(sent), summary(sent if lost is None else lost),
            max(each.probe_parity for each in receipts), min(each.probe_moved for each in receipts),
            prefix_cache_reset=all(each.prefix_cache_reset for each in receipts),
            seconds=max(each.seconds for each in receipts),
            bytes=sum(each.bytes for each in receipts),
            probe_tolerance=max(each.probe_tolerance for each in receipts),
            differing=() if lost is None else tuple(differing(sent, lost)[:5]),
            samplers=receipts,
        )  # fmt: skip
        for each in (receipt, *receipts):
            each.check()
        return receipt

    def restore(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Take up weights of earlier, as a checkpoint holds them."""
        self._drawn.drop(0)
        copy_weights(tensors, self.weights.tensors())
        self.version = version
        self._all("restore", _shipped(tensors), version, what="the weights of a checkpoint")

    @contextmanager
    def fresh(self, policy: PreTrainedModel) -> Iterator[Sampler]:
        """Samples from the policy as it is now, by all samplers."""
        self._evaluated = _shipped(weights_of(policy)), []
        try:
            self._all("enter", self._evaluated[0], what="the start of an evaluation")
            yield _Fresh(self)
        finally:
            self._evaluated = None
        self._all("leave", what="the end of an evaluation")

    def check_lengths(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        ask = partial(self._ask, 0, "check_lengths", list(prompts), sampling)
        self._value(0, ask(), ask, "the check of the prompts")

    def close(self) -> None:
        """End all of the run's actors, trainers too."""
        self._cluster.close()

    def evaluate(self, request: Request) -> list[Group]:
        """Inside `fresh`."""
        assert self._evaluated is not None
        shares = self._share(request, "evaluate")
        self._evaluated[1].append(shares)
        groups, _ = self._collected(shares, "an evaluation")
        self._evaluated[1].remove(shares)
        return groups

    def _start(self) -> Any:
        return self._cluster.start(Replica, *self._arguments, gpus=self._gpus)

    def _ready(self, numbers: Sequence[int]) -> None:
        """Wait until these samplers have started."""
        answers = [self._ask(index, "versions") for index in numbers]
        for index, found in zip(numbers, self._cluster.values(answers, "a sampler's start", START_S), strict=True):
            require_same_versions(found, f"the machine of sampler {index}")

    def _ask(self, index: int, method: str, *arguments: Any) -> Any:
        return getattr(self.actors[index], method).remote(*arguments)

    def _draw(self, request: Request) -> Shares:
        return self._share(request, "generate")

    def _share(self, request: Request, method: str) -> Shares:
        count, prompts = len(self.actors), request.prompts
        bounds = [len(prompts) * index // count for index in range(count + 1)]
        requests = [replace(request, prompts=prompts[bounds[index] : bounds[index + 1]]) for index in range(count)]
        answers = {index: self._ask(index, method, some) for index, some in enumerate(requests) if some.prompts}
        return Shares(requests, answers)

    def _collected(self, shares: Shares, what: str) -> tuple[list[Group], float]:
        """All groups, in the order of the prompts, and the seconds of the sampler that took longest."""
        for index in shares.answers:
            if index not in shares.found:
                again = partial(shares.answers.__getitem__, index)
                shares.found[index] = self._value(index, again(), again, what)
        found = [shares.found[index] for index in sorted(shares.found)]
        return [group for groups, _ in found for group in groups], max(seconds for _, seconds in found)

    def _settle(self) -> None:
        """Have what was drawn for after the sync; the rest is dropped."""
        for drawn in self._drawn.keep_after_sync():
            self._collected(drawn.answer, "completions drawn ahead of a sync")

    def _all(self, method: str, *arguments: Any, what: str) -> list[Any]:
        answers = [self._ask(index, method, *arguments) for index in range(len(self.actors))]
        again = [partial(self._ask, index, method, *arguments) for index in range(len(self.actors))]
        return [self._value(index, answer, again[index], what) for index, answer in enumerate(answers)]

    def _value(self, index: int, answer: Any, again: Callable[[], Any], what: str) -> Any:
        """What comes of an answer, or of `again()` once the sampler was replaced."""
        for attempt in range(ATTEMPTS):
            try:
                return self._cluster.value(answer, what)
            except ActorFailed as error:
                self.incidents.append(f"sampler {index}: {error}")
                if attempt + 1 == ATTEMPTS:
                    raise
                self._replace(index)
                answer = again()
        raise AssertionError("the last attempt raises")

    def _replace(self, index: int) -> None:
        """A new actor with the weights of the others, which draws what the old one owed, in its order."""
        self._cluster.end(self.actors[index])
        self.actors[index] = self._start()
        self._ready([index])
        self._ask(index, "restore", _shipped(self.weights.tensors()), self.version)
        for drawn in self._drawn.queue:
            self._again(index, drawn.answer, "generate")
        if self._evaluated:
            self._ask(index, "enter", self._evaluated[0])
            for shares in self._evaluated[1]:
                self._again(index, shares, "evaluate")

    def _again(self, index: int, shares: Shares, method: str) -> None:
        if index in shares.answers and index not in shares.found:
            shares.answers[index] = self._ask(index, method, shares.requests[index])


class _Fresh:
    """The samplers inside `Replicas.fresh`."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas, self.version = replicas, replicas.version

    def sync(self, policy: PreTrainedModel, version: int, *, step: int) -> Receipt:
        raise RuntimeError("a sampler of an evaluation holds the policy as it is and is not synced")

    def generate(
        self, prompts: Sequence[Prompt], group_size: int, *, seed: tuple[int, ...], sampling: Sampling
    ) -> list[Group]:
        return self._replicas.evaluate(Request(tuple(prompts), group_size, seed, sampling))


def _shipped(tensors: Mapping[str, Tensor]) -> Any:
    """In the object store, once for all who read it."""
    import ray

    return ray.put({name: tensor.detach().cpu() for name, tensor in tensors.items()})
