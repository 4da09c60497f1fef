"""How long a step takes: an estimate from floating-point operations and bytes, as a range, before anything is loaded.

With N weights that a token is multiplied with, a forward pass takes 2 N operations a token and a backward pass 4 N, or
2 N where the weights are frozen (LoRA); attention adds 4 x context x width a layer and token. Kaplan et al. 2020,
https://arxiv.org/abs/2001.08361, section 2.1. Drawing a token reads all weights and the keys and values of all rows.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kit.memory import Plan

Range = tuple[float, float]  # seconds, low and high
# Shares of what the hardware can do that programs reach; rules of thumb, and the reason why the answer is a range.
COMPUTE_REACHED = (0.25, 0.6)
BANDWIDTH_REACHED = (0.4, 0.85)
# Seconds a layer and token beyond that, where the processor starts each kernel: some 20 a layer at 5 to 25 us.
LAUNCHES = (1e-4, 5e-4)
LAUNCHES_VLLM = (0.0, 5e-5)  # captured in graphs
HASHED = (4e8, 2e9)  # bytes a second of SHA-256 on the host: both sides of a sync are hashed


@dataclass(frozen=True)
class Hardware:
    """What a device can do at best; operations are of dense matrices."""

    name: str
    flops_bfloat16: float  # operations a second
    flops_float32: float
    bandwidth: float  # bytes a second
    total_bytes: int
    source: str

    def __post_init__(self) -> None:
        for name in ("flops_bfloat16", "flops_float32", "bandwidth", "total_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} above 0, came {getattr(self, name)}: take it from the data sheet")


HARDWARE = {
    hardware.name: hardware
    for hardware in (
        Hardware("RTX 4090", 165.2e12, 82.6e12, 1008e9, 24 * 10**9, "NVIDIA Ada GPU architecture, appendix A"),
        Hardware("A100 40GB", 312e12, 19.5e12, 1555e9, 40 * 10**9, "NVIDIA A100 data sheet"),
        Hardware("A100 80GB", 312e12, 19.5e12, 2039e9, 80 * 10**9, "NVIDIA A100 data sheet, SXM"),
        Hardware("H100", 989e12, 67e12, 3350e9, 80 * 10**9, "NVIDIA H100 data sheet, SXM, without sparsity"),
        Hardware("H200", 989e12, 67e12, 4800e9, 141 * 10**9, "NVIDIA H200 data sheet, SXM, without sparsity"),
    )
}


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a step."""

    generate: float
    train: float  # the reference's scores included


@dataclass(frozen=True)
class StepTime:
    """Seconds, low and high. `sync` is for a step that syncs, rewards and evaluations are not in it."""

    sync: Range
    generate: Range
    train: Range

    @property
    def total(self) -> Range:
        low, high = (sum(part[i] for part in (self.sync, self.generate, self.train)) for i in (0, 1))
        return low, high

    def __str__(self) -> str:
        parts = {"sync": self.sync, "generate": self.generate, "train": self.train, "step": self.total}
        return "\n".join(f"{name:<9} {low:8.2f} to {high:8.2f} s" for name, (low, high) in parts.items())


def step_flops(plan: Plan) -> Flops:
    """Of one step with completions of full length and a signal in every group."""
    model, config, (shape, micro_batches) = plan.model, plan.config, plan.micro_batch
    head, context = model.vocab_size * model.hidden_size, plan.prompt_length - 1
    length = config.sampling.max_completion_length
    attention = 4 * model.attention_width * model.num_layers

    def forward(rows: int, new: int, seen: int, weights: int) -> float:
        return rows * new * (2.0 * weights + attention * seen)

    rows, body = shape.rollouts, model.matmul_parameters - head
    if config.gradient_checkpointing:
        layers = forward(rows, context + length, context + length, body)
    else:
        layers = forward(shape.prompts, context, context, body) + forward(rows, length, context + length, body)
    output = rows * length * 2.0 * head
    frozen = config.lora is not None
    trained = (layers + output) * (2 if frozen else 3) + layers * config.gradient_checkpointing
    scored = forward(shape.prompts, context, context, body) + forward(rows, length, context + length, body) + output
    prompts = config.prompts_per_step
    drawn = forward(prompts, plan.prompt_length, plan.prompt_length, body)
    drawn += forward(prompts * config.group_size, length, plan.prompt_length + length // 2, model.matmul_parameters)
    return Flops(drawn, micro_batches * (trained + scored * plan.objective.needs_reference))


def step_time(plan: Plan, hardware: Hardware) -> StepTime:
    """Seconds of one step on one device, from what it can do at best and the shares of that which programs reach."""
    model, config = plan.model, plan.config
    peak = hardware.flops_bfloat16 if config.bf16 else hardware.flops_float32
    flops, length = step_flops(plan), config.sampling.max_completion_length
    rows = config.prompts_per_step * config.group_size
    cached = model.cached_numbers() * (2 if config.bf16 else 4) * rows * (plan.prompt_length + length / 2)
    read = length * (model.weight_bytes + cached)
    launches = (0.0, 0.0) if plan.is_on_cpu else LAUNCHES_VLLM if plan.vllm else LAUNCHES

    def generated(which: int) -> float:
        compute, bandwidth = COMPUTE_REACHED[1 - which], BANDWIDTH_REACHED[1 - which]
        bound = max(flops.generate / (peak * compute), read / (hardware.bandwidth * bandwidth))
        return bound + launches[which] * model.num_layers * length

    moved = 2 * sum(model.trained) * 4
    return StepTime(
        sync=(moved / HASHED[1], moved / HASHED[0]),
        generate=(generated(0), generated(1)),
        train=(flops.train / (peak * COMPUTE_REACHED[1]), flops.train / (peak * COMPUTE_REACHED[0])),
    )


def measured_hardware(device: str = "cpu", *, size: int = 1024, seconds: float = 0.2) -> Hardware:
    """What this machine's device does in a short benchmark: products of square matrices, and copies.

    Args:
        size: rows of a matrix, >= 1.
        seconds: for each of the three measurements, > 0.
    """
    if size < 1 or seconds <= 0:
        raise ValueError(f"expected size >= 1 and seconds above 0, came {size} and {seconds}")
    place = torch.device(device)
    rates = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.ones(size, size, device=place, dtype=dtype)
        rates[dtype] = 2 * size**3 * _calls_a_second(lambda a=a: torch.mm(a, a), place, seconds)
    source = torch.ones(2**24, device=place)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes * _calls_a_second(lambda: target.copy_(source), place, seconds)
    total = torch.cuda.get_device_properties(place).total_memory if place.type == "cuda" else _host_bytes()
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "this machine's processor"
    return Hardware(name, rates[torch.bfloat16], rates[torch.float32], bandwidth, total, "measured")


def _calls_a_second(action: Callable[[], object], device: torch.device, seconds: float) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    action()
    wait()
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        action()
        wait()
        calls += 1
    return calls / (time.perf_counter() - started)


def _host_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
