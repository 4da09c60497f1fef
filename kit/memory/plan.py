"""What a run holds at each moment of a step.

Assumed is the worst batch that the configuration allows: every completion of full length, every group with a signal.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from transformers import PreTrainedConfig

from kit.config import RunConfig
from kit.logprobs import CHUNK_FLOATS_ACCELERATOR, CHUNK_FLOATS_CPU
from kit.memory.estimate import Estimate, Moment
from kit.models.dry_run import DryModel, Passes, Shape
from kit.objectives import Objective
from kit.types import Group, Prompt, Rollout

FLOAT32, FLOAT64 = 4, 8  # bytes
# Beyond the tensors themselves, on an accelerator: rules of thumb, not measured facts.
CONTEXT_BYTES = 700_000_000  # the driver's context, kernels and workspaces of matrix products
FRAGMENTATION = 0.05  # of all tensors: what the allocator holds without use
VLLM_WORKSPACE = 1_000_000_000  # activations and captured graphs, within vLLM's share
# bitsandbytes 0.50: two moments of a byte each, and a float32 a block of 256 each; small tensors stay in float32.
SMALL_TENSOR, BLOCK = 4096, 256


@dataclass(frozen=True)
class Vllm:
    """That vLLM samples, on the same device."""

    gpu_memory_utilization: float = 0.4  # share of the device's memory that it takes
    sleeps: bool = True  # whether it gives that back while the policy trains

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory_utilization < 1:
            raise ValueError(f"expected gpu_memory_utilization in (0, 1), came {self.gpu_memory_utilization}")


@dataclass(frozen=True)
class Plan:
    """What an estimate is made from, with each knob a field that can be replaced."""

    config: RunConfig
    objective: Objective
    prompt_length: int
    total_bytes: int | None
    vllm: Vllm | None
    model_config: PreTrainedConfig
    _models: dict[RunConfig, DryModel] = field(default_factory=dict, compare=False)  # shared by a plan's variants

    @cached_property
    def model(self) -> DryModel:
        config = self.config
        key = RunConfig(lora=config.lora, quantization=config.quantization, bf16=config.bf16,
                        gradient_checkpointing=config.gradient_checkpointing)  # fmt: skip
        if key not in self._models:
            self._models[key] = DryModel(self.model_config, key)
        return self._models[key]

    @property
    def is_on_cpu(self) -> bool:
        return torch.device(self.config.device).type == "cpu"

    @cached_property
    def micro_batch(self) -> tuple[Shape, int]:
        """The largest micro-batch, and how many of them a step has."""
        config = self.config
        an_example, a_prompt = _trained_rollouts(self.objective, config.group_size)
        of_step = a_prompt * config.prompts_per_step
        rows = min(max(config.micro_batch_size // an_example, 1) * an_example, of_step)
        prompts = math.ceil(rows / a_prompt)
        shape = Shape(prompts, rows, self.prompt_length, config.sampling.max_completion_length)
        return shape, math.ceil(of_step / rows)

    @cached_property
    def _train(self) -> Passes:
        return self.model.train(self.micro_batch[0])

    @cached_property
    def estimate(self) -> Estimate:
        model, (shape, _) = self.model, self.micro_batch
        tokens = shape.rollouts * shape.completion_length
        return Estimate(
            parameters=model.parameters,
            trained_parameters=sum(model.trained),
            moments=self._moments(),
            total_bytes=self.total_bytes,
            advice=(),
            logits=self._logits(tokens),
            plain_logits=3 * tokens * model.vocab_size * FLOAT32,
            concurrent_sequences=self._concurrent_sequences() if self.vllm else None,
        )

    def _moments(self) -> tuple[Moment, ...]:
        """At each moment, what belongs to it and what stands all the time."""
        gradients = sum(self.model.trained) * FLOAT32  # kept from an update until the next
        # torch's AdamW makes temporary tensors of a weight's size, on an accelerator for all weights at once.
        at_update = (
            0
            if self.config.optim != "adamw_torch"
            else gradients
            if not self.is_on_cpu
            else 2 * FLOAT32 * max(self.model.trained)
        )
        found = [
            *((name, parts | {"gradients": gradients}) for name, parts in self._sampling().items()),
            ("output layer", self._at_output_layer()),
            ("backward", self._backward()),
            ("optimizer", {"gradients": gradients, "workspace": at_update}),
        ]
        return tuple(Moment(name, self._with_standing(name, parts)) for name, parts in found)

    def _sampling(self) -> dict[str, dict[str, int]]:
        """Before the training of a step. What vLLM holds is its share."""
        config, limit = self.config, self.config.sampling.max_completion_length
        if self.vllm:
            return {"generate": {}}
        found = {}
        for name, prompts, each in (("generate", config.prompts_per_step, config.group_size),
                                    ("evaluate", config.eval_prompts, config.eval_samples)):  # fmt: skip
            if config.generation_batch_size is not None:
                prompts = min(prompts, max(1, config.generation_batch_size // each))
            passes = self.model.generate(Shape(prompts, prompts * each, self.prompt_length, limit), config.sampling)
            found[name] = {"keys and values": passes.kept, "workspace": passes.workspace}
        if config.lora is None:  # old, new and their difference in float64, of one tensor at a time
            found["sync"] = {"workspace": 3 * FLOAT64 * max(self.model.trained)}
        return found

    def _at_output_layer(self) -> dict[str, int]:
        shape, micro_batches = self.micro_batch
        gradients = sum(self.model.trained) * FLOAT32 if micro_batches > 1 else 0
        logits = self._logits(shape.rollouts * shape.completion_length)
        return {"gradients": gradients, "activations": self._train.kept, "logits": logits}

    def _backward(self) -> dict[str, int]:
        """The larger of its start, its middle and its end; with one micro-batch gradients come as activations go."""
        (_, micro_batches), model, passes = self.micro_batch, self.model, self._train
        is_full, is_first = self.config.lora is None, micro_batches == 1
        gradients, matrix = sum(model.trained) * FLOAT32, model.vocab_size * model.hidden_size * FLOAT32 * is_full
        before = (matrix if is_first else gradients) * (is_full or not is_first)
        # Embeddings get a dense gradient from the completions and one from the prompts.
        uses = 1 if self.config.gradient_checkpointing or self.prompt_length == 1 else 2
        dense = matrix * (uses - (is_first and not model.is_tied))
        moments = [
            {"gradients": before, "activations": passes.kept + passes.workspace},
            {"gradients": before, "activations": passes.halfway + passes.workspace + matrix * (uses - 1)},
            {"gradients": gradients, "activations": max(passes.workspace + passes.a_layer, dense)},
        ]
        return max(moments, key=lambda parts: sum(parts.values()))

    def _logits(self, tokens: int) -> int:
        """Three float32 tensors a chunk, gradients of hidden states, and of the output layer's weight if it trains."""
        model = self.model
        chunk = max(1, (CHUNK_FLOATS_CPU if self.is_on_cpu else CHUNK_FLOATS_ACCELERATOR) // model.vocab_size)
        matrix = model.vocab_size * model.hidden_size * FLOAT32 if self.config.lora is None else 0
        states = tokens * model.hidden_size * model.element_size
        return 3 * min(chunk, tokens) * model.vocab_size * FLOAT32 + states + matrix

    def _with_standing(self, name: str, parts: Mapping[str, int]) -> dict[str, int]:
        """With weights, copies and optimizer, which stand all the time, and what is lost around them."""
        config, model = self.config, self.model
        trained = sum(model.trained) * FLOAT32
        copy = trained if config.lora else model.weight_bytes
        found = {"weights": model.weight_bytes, "adapters": trained if config.lora else 0}
        if self.vllm is None:
            found["sampler's copy"] = copy
        if self.objective.needs_reference:
            found["reference's copy"] = copy
        found["optimizer's moments"] = sum(moment_bytes(count, config.optim) for count in model.trained)
        found |= parts
        lost = 0
        if not self.is_on_cpu:
            lost = CONTEXT_BYTES + round(FRAGMENTATION * sum(found.values()))
        if self.vllm and (name == "generate" or not self.vllm.sleeps):
            found["vLLM's share"] = self._share()
        return {part: size for part, size in found.items() if size} | ({"overhead": lost} if lost else {})

    def _share(self) -> int:
        """Bytes that vLLM takes."""
        assert self.vllm is not None and self.total_bytes is not None
        return int(self.vllm.gpu_memory_utilization * self.total_bytes)

    def _concurrent_sequences(self) -> int:
        """How many sequences of full length vLLM's keys and values have room for beside its own copy of the weights."""
        element = 2 if self.config.bf16 else FLOAT32
        is_frozen = self.config.lora is not None
        weights = self.model.weight_bytes if is_frozen else self.model.parameters * element
        length = self.prompt_length + self.config.sampling.max_completion_length
        room = self._share() - weights - VLLM_WORKSPACE
        return max(room // (self.model.cached_numbers() * element * length), 0)


def moment_bytes(count: int, optim: str) -> int:
    """AdamW's two moments of a tensor of `count` numbers."""
    if optim == "adamw_torch" or count < SMALL_TENSOR:
        return 2 * FLOAT32 * count
    return 2 * count + 2 * FLOAT32 * math.ceil(count / BLOCK)


def _trained_rollouts(objective: Objective, group_size: int) -> tuple[int, int]:
    """Rollouts of an example, and of a prompt in training: what is selected from a group of right and wrong ones."""
    rollout = Rollout((0,), (0,), (0.0,), (0.0,), "", "stop", 0)
    rewards = tuple(float(number % 2) for number in range(group_size))
    group = Group(Prompt("", "", {}), (rollout,) * group_size, rewards)
    examples = objective.select(group, torch.Generator().manual_seed(0))
    return len(examples[0].rollouts), sum(len(example.rollouts) for example in examples)
