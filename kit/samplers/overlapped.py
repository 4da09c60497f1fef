"""Generation in a process of its own, while the policy trains on earlier batches.

Within a sync window the sampler's weights do not change, so what it will be asked for can be drawn at once: the
completions are to the bit those of a blocking run, since their randomness depends on (seed, prompt) alone. The process
shares the weights' memory, so a sync is one copy, as in a blocking run.

A process that dies or does not answer in time is replaced, and its batch drawn anew: that gives the same completions.
"""

import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kit.config import Sampling
from kit.samplers.checksum import differing, summary, weight_checksums
from kit.samplers.drawn import DrawnAhead
from kit.samplers.receipt import Receipt
from kit.samplers.sampler import Request, Sampler, Upcoming
from kit.samplers.transformers import TransformersSampler
from kit.types import Group, Prompt

ATTEMPTS = 3  # processes that are tried for one batch


class Overlapped:
    """A `TransformersSampler` whose training completions are drawn by another process, ahead of when they are needed.

    In a script, make the run under `if __name__ == "__main__":`, as with all of Python's multiprocessing: the process
    imports the script. A notebook needs nothing.

    Args:
        policy, tokenizer: as of every sampler.
        depth: batches that are drawn ahead of the one being trained on, >= 0; 0 is a blocking run.
        ahead: of these, how many may be drawn for after the next sync, with the weights of before it, >= 0. The first
            batches of a window then need not be waited for, and are one window staler, which `sync/staleness` records.
        deadline: seconds after which a process that does not answer is replaced, > 0.

    Attributes:
        incidents: what went wrong with the process since the list was last emptied, in words.
        busy: seconds that the process took for what `generate` has returned since this was last set to zero.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, depth: int = 2, ahead: int = 0,
        deadline: float = 600.0,
    ) -> None:  # fmt: skip
        if not deadline > 0:
            raise ValueError(f"expected deadline > 0 seconds, came {deadline}")
        self.deadline = deadline
        self._drawn = DrawnAhead(self._draw, depth=depth, ahead=ahead)
        self.incidents: list[str] = []
        self.busy = 0.0
        self._here = TransformersSampler(policy, tokenizer)
        self.weights, self.tokenizer = self._here.weights, tokenizer
        for tensor in self.weights.tensors().values():
            tensor.share_memory_()
        self._processes: list[_Process] = []  # one, or none yet
        weakref.finalize(self, _end, self._processes)

    @property
    def version(self) -> int:
        return self._here.version

    def expect(self, batches: Iterable[Upcoming]) -> None:
        """Draw what will be asked for next, in this order; what was drawn for something else is dropped."""
        self._drawn.expect(batches)

    def generate(
        self, prompts: Sequence[Prompt], group_size: int, *, seed: tuple[int, ...], sampling: Sampling
    ) -> list[Group]:
        """See `Sampler.generate`; what was expected is there, or on its way."""
        request = Request(tuple(prompts), group_size, seed, sampling)
        drawn = self._drawn.first(request)
        groups, seconds = self._waited(lambda: drawn.answer, f"the batch of seed {seed}")
        del self._drawn.queue[0]
        self.busy += seconds
        return groups

    def sync(self, policy: PreTrainedModel, version: int, *, step: int) -> Receipt:
        """Copy the weights once nothing is being drawn with them, and prove that the process computes with them."""
        self._settle()
        receipt = self._here.sync(policy, version, step=step)
        held, probed = self._answer(_state, "what it holds")
        parity = (probed - self._here.probe().cpu()).abs().max().item()
        receipt = replace(receipt, sampler_digest=summary(held), probe_parity=max(receipt.probe_parity, parity))
        if receipt.sampler_digest != receipt.digest:
            sent = weight_checksums(self.weights.tensors())
            receipt = replace(receipt, differing=tuple(differing(sent, held)[:5]))
        receipt.check()
        return receipt

    def restore(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Take up weights of earlier, as a checkpoint holds them."""
        self._drawn.drop(0)
        self._settle()
        self._here.restore(tensors, version)

    def fresh(self, policy: PreTrainedModel) -> AbstractContextManager[Sampler]:
        """Samples from the policy itself, in this process."""
        return self._here.fresh(policy)

    def check_lengths(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """As of `TransformersSampler`."""
        self._here.check_lengths(prompts, sampling)

    def process_id(self) -> int:
        """Of the process, which is started if there is none."""
        return self._answer(os.getpid, "its number")

    def close(self) -> None:
        """End the process."""
        _end(self._processes)
        self._drawn.queue.clear()

    def _ask(self, function: Any, *arguments: Any) -> Future[Any]:
        if not self._processes:
            self._processes.append(_Process(self._here))
        try:
            return self._processes[0].submit(_in_precision, _precision(self._here), function, *arguments)
        except BrokenProcessPool as error:  # whoever waits for the answer replaces it
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def _answer(self, function: Any, what: str) -> Any:
        return self._waited(lambda: self._ask(function), what)

    def _waited(self, pending: Callable[[], Future[Any]], what: str) -> Any:
        """What comes of `pending()`, which is another future once the process was replaced."""
        for attempt in range(ATTEMPTS):
            try:
                return pending().result(self.deadline)
            except (BrokenProcessPool, TimeoutError) as error:
                self._replace(error, what, is_last=attempt + 1 == ATTEMPTS)
        raise AssertionError("the last attempt raises")

    def _settle(self) -> None:
        """Wait until the weights are not in use. Only what was drawn for after the sync is of use then."""
        for drawn in self._drawn.keep_after_sync():
            self._waited(lambda drawn=drawn: drawn.answer, "completions drawn ahead of a sync")
        if self._processes:  # what was dropped may be under way
            self._answer(os.getpid, "the end of what it draws")

    def _draw(self, request: Request) -> "Future[tuple[list[Group], float]]":
        return self._ask(_generate, request, self.version)

    def _replace(self, error: Exception, what: str, *, is_last: bool) -> None:
        """A new process, which draws anew what the old one owed."""
        how = f"did not answer within {self.deadline:g} s" if isinstance(error, TimeoutError) else "died"
        self.incidents.append(f"the sampler's process {how} while {what} was waited for")
        _end(self._processes)
        if is_last:
            raise RuntimeError(
                f"{ATTEMPTS} sampler processes one after another {how} while {what} was waited for: see what they "
                "wrote above, give them more memory, or a longer deadline; a script must make such a run under "
                'if __name__ == "__main__":, since these processes import it'
            ) from error
        for drawn in self._drawn.queue:
            if not _is_there(drawn.answer):
                drawn.answer = self._draw(drawn.request)


def _precision(sampler: TransformersSampler) -> tuple[str, torch.dtype, bool]:
    """The arguments of the `torch.autocast` that is in force here."""
    device = next(iter(sampler.weights.tensors().values())).device.type
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


def _is_there(answer: "Future[Any]") -> bool:
    return answer.done() and not answer.cancelled() and answer.exception() is None


def _context() -> multiprocessing.context.BaseContext:
    """Where it is safe, from a process that has imported everything already: seconds less to wait for a new one."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class _Process:
    """One process that does what it is told, in order."""

    def __init__(self, sampler: TransformersSampler) -> None:
        self._pool = ProcessPoolExecutor(1, _context(), _start, (sampler, torch.get_num_threads()))
        self._pid = self._pool.submit(os.getpid)

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        return self._pool.submit(function, *arguments)

    def kill(self) -> None:
        if self._pid.done() and self._pid.exception() is None:
            with suppress(ProcessLookupError):
                os.kill(self._pid.result(), signal.SIGKILL)
        self._pool.shutdown(wait=False, cancel_futures=True)


def _end(processes: list[_Process]) -> None:
    while processes:
        processes.pop().kill()


# What follows runs in the process.

_SAMPLER: list[TransformersSampler] = []


def _start(sampler: TransformersSampler, num_threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the run's affair
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(num_threads)
    _SAMPLER[:] = [sampler]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_precision(precision: tuple[str, torch.dtype, bool], function: Any, *arguments: Any) -> Any:
    device, dtype, enabled = precision
    with torch.autocast(device, dtype, enabled=enabled, cache_enabled=False):
        return function(*arguments)


def _generate(request: Request, version: int) -> tuple[list[Group], float]:
    (sampler,) = _SAMPLER
    sampler.version, started = version, time.perf_counter()
    groups = sampler.generate(request.prompts, request.group_size, seed=request.seed, sampling=request.sampling)
    return groups, time.perf_counter() - started


def _state() -> tuple[dict[str, str], Tensor]:
    """What the weights are, and what they compute."""
    (sampler,) = _SAMPLER
    return weight_checksums(sampler.weights.tensors()), sampler.probe().cpu()
