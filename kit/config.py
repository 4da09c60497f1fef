"""The configuration of a run: plain numbers and names, nothing that belongs to one algorithm only.

Constants of an algorithm travel with its objective (`kit.objectives`), those of a schedule with the schedule
(`kit.sync`). Names are TRL's or transformers' where those have the same quantity.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. Top-k is off, always: there is no knob for it."""

    max_completion_length: int = 48  # tokens, end marker included
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # below 1 the log-probs are those of the truncated distribution

    def __post_init__(self) -> None:
        _require(self.max_completion_length >= 1, self, "max_completion_length", "at least 1 token")
        _require(self.temperature >= 0, self, "temperature", "0 (greedy) or more")
        _require(0 < self.top_p <= 1, self, "top_p", "in (0, 1]")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters: a linear layer's frozen W becomes W + (lora_alpha / lora_r) B A. Hu et al., arXiv 2106.09685.

    Names are TRL's. There is no dropout: the sampler has none, and the policy must be what was sampled.
    """

    lora_r: int = 16  # columns of B, rows of A
    lora_alpha: float = 32.0  # scale
    lora_target_modules: str | tuple[str, ...] = "all-linear"  # names of layers; all-linear: each but the output layer
    adapter_path: str | None = None  # folder of a saved adapter to go on from; None = a new one, which changes nothing

    def __post_init__(self) -> None:
        _require(self.lora_r >= 1, self, "lora_r", "at least 1")
        _require(self.lora_alpha > 0, self, "lora_alpha", "above 0")
        _require(len(self.lora_target_modules) > 0, self, "lora_target_modules", "all-linear, or names of layers")


@dataclass(frozen=True)
class RunConfig:
    """One run, less its task, objective and schedules, which are values of their own."""

    model_name_or_path: str = "data/seed"  # folder, or name on the hub, of a Hugging Face causal language model
    lora: Lora | None = None  # train adapters on the frozen model; None = all weights
    quantization: Literal["nf4", "int8"] | None = None  # of the frozen model, by bitsandbytes; needs lora
    bf16: bool = False  # compute in bfloat16; trained weights and log-probs stay float32
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them
    optim: Literal["adamw_torch", "adamw_bnb_8bit"] = "adamw_torch"  # the latter keeps its moments in 8 bits
    device: str = "cpu"  # torch's name: cpu, cuda, cuda:1
    prompts_per_step: int = 32  # distinct prompts an optimizer step
    group_size: int = 8  # completions a prompt
    max_steps: int = 200  # optimizer steps
    learning_rate: float = 5e-5  # AdamW, constant after the warm-up
    warmup_steps: int = 0  # optimizer steps
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # gradients are scaled down to this 2-norm
    reuse_epochs: int = 1  # optimizer steps on each batch of completions; generation happens at the first of them
    max_age: int | None = None  # updates; completions from a sampler that lags more are dropped; None = all are used
    drift_prompts: int = 8  # groups on which drift is measured, if the schedule asks for it, and the gap
    gap_steps: int | None = None  # optimizer steps between measurements of `kit.gap`; None = never
    seed: int = 0  # of prompts, completions, pairs
    eval_steps: int = 20  # optimizer steps between evaluations; one more at the end
    eval_prompts: int = 256  # held-out problems an evaluation
    eval_samples: int = 4  # completions a problem
    save_steps: int = 50  # optimizer steps between checkpoints; one more at the end
    save_total_limit: int = 2  # newest checkpoints that are kept; `Run.fork` can start from any of them
    generation_batch_size: int | None = None  # completions drawn at a time; None = all at once
    micro_batch_size: int = 64  # rollouts in one backward pass; the gradient does not depend on it
    num_threads: int = 2  # of torch on a CPU; part of what makes a run reproducible to the bit
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        _require(self.quantization is None or self.lora is not None, self, "quantization",
                 "None without lora, because quantized weights cannot be trained")  # fmt: skip
        for name in ("prompts_per_step", "group_size", "max_steps", "eval_steps", "eval_prompts", "eval_samples",
                     "save_steps", "save_total_limit", "micro_batch_size", "num_threads", "reuse_epochs",
                     "drift_prompts"):  # fmt: skip
            _require(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("learning_rate", "max_grad_norm", "adam_epsilon"):
            _require(getattr(self, name) > 0, self, name, "above 0")
        for name in ("warmup_steps", "weight_decay", "seed"):
            _require(getattr(self, name) >= 0, self, name, "0 or more")
        for name in ("adam_beta1", "adam_beta2"):
            _require(0 <= getattr(self, name) < 1, self, name, "in [0, 1)")
        _require(self.gap_steps is None or self.gap_steps >= 1, self, "gap_steps", "at least 1, or None")
        size = self.generation_batch_size
        _require(size is None or size >= 1, self, "generation_batch_size", "at least 1, or None")
        _require(self.max_age is None or self.max_age >= 0, self, "max_age", "0 or more, or None")
        for name in ("max_steps", "save_steps"):  # a checkpoint holds no half-used batch
            _require(getattr(self, name) % self.reuse_epochs == 0, self, name, "a multiple of reuse_epochs")


def _require(holds: bool, config: object, name: str, expected: str) -> None:
    if not holds:
        raise ValueError(f"{type(config).__name__}.{name} must be {expected}, got {getattr(config, name)!r}")
