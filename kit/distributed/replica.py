"""A sampler in a process of its own, anywhere on a cluster, with a copy of the policy that is sent to it."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from kit.config import RunConfig, Sampling
from kit.distributed.cluster import versions
from kit.models.policy import load_policy, precision
from kit.models.weights import copy_weights, weights_of
from kit.samplers import Receipt, Request, Sampler, SamplerFactory, SyncError
from kit.samplers.checksum import weight_checksums
from kit.types import Group, Prompt


class Replica:
    """An actor; its methods are called one after another, in the order of the calls."""

    def __init__(self, config: RunConfig, factory: SamplerFactory) -> None:
        torch.set_num_threads(config.num_threads)
        self.policy, tokenizer = load_policy(
            config.model_name_or_path, lora=config.lora, bf16=config.bf16, device=config.device, seed=config.seed
        )
        self._bf16 = config.bf16
        self._sampler = factory(self.policy, tokenizer)
        self._evaluation, self._fresh = ExitStack(), None

    def versions(self) -> dict[str, str]:
        return versions()

    def check_lengths(self, prompts: list[Prompt], sampling: Sampling) -> None:
        self._sampler.check_lengths(prompts, sampling)

    def sync(self, tensors: Mapping[str, torch.Tensor], version: int, step: int) -> tuple[dict[str, str], Receipt]:
        """Take the policy's weights, and sync the sampler with them.

        Returns:
            checksums of what arrived; the sampler's receipt, also where it fails, for whoever asked to judge.
        """
        copy_weights(tensors, weights_of(self.policy))
        with self._precision():
            try:
                receipt = self._sampler.sync(self.policy, version, step=step)
            except SyncError as error:
                receipt = error.receipt
        return weight_checksums(weights_of(self.policy)), receipt

    def restore(self, tensors: Mapping[str, torch.Tensor], version: int) -> None:
        with self._precision():
            self._sampler.restore(tensors, version)

    def generate(self, request: Request) -> tuple[list[Group], float]:
        """The groups, and the seconds that they took."""
        return self._generated(self._sampler, request)

    def enter(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """From here on `evaluate` answers with these weights of the policy."""
        self.leave()
        copy_weights(tensors, weights_of(self.policy))
        with self._precision():
            self._fresh = self._evaluation.enter_context(self._sampler.fresh(self.policy))

    def evaluate(self, request: Request) -> tuple[list[Group], float]:
        assert self._fresh is not None
        return self._generated(self._fresh, request)

    def leave(self) -> None:
        with self._precision():
            self._evaluation.close()

    def _generated(self, sampler: Sampler, request: Request) -> tuple[list[Group], float]:
        started = time.perf_counter()
        with self._precision():
            groups = sampler.generate(request.prompts, request.group_size, seed=request.seed, sampling=request.sampling)
        return groups, time.perf_counter() - started

    def _precision(self) -> Any:
        return precision(self.policy, bf16=self._bf16)
