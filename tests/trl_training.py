"""TRL 1.16's trainers on the seed model, on a CPU, subclassed only to write down what they do."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kit.config import RunConfig
from kit.models.policy import load_policy, score
from kit.models.weights import copy_weights, frozen_copy
from kit.types import Rollout

STEPS, PROMPTS, GROUP_SIZE, LIMIT = 4, 4, 4, 12
BATCH = PROMPTS * GROUP_SIZE
CONFIG = RunConfig(learning_rate=1e-3, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-4, max_grad_norm=0.5)
TEXTS = [f"{3**n % 97}+{5**n % 89}=" for n in range(1, 65)]
PROMPT_ROWS = [{"prompt": [{"role": "user", "content": text}]} for text in TEXTS]


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """What TRL calls the optimizer of `CONFIG`, and nothing on the side."""
    return {
        "output_dir": str(folder), "max_steps": STEPS, "learning_rate": CONFIG.learning_rate,
        "lr_scheduler_type": "constant", "adam_beta1": CONFIG.adam_beta1, "adam_beta2": CONFIG.adam_beta2,
        "adam_epsilon": CONFIG.adam_epsilon, "weight_decay": CONFIG.weight_decay, "optim": "adamw_torch",
        "max_grad_norm": CONFIG.max_grad_norm, "gradient_accumulation_steps": 1, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "disable_dropout": True, "dataloader_pin_memory": False,
        "save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True, "seed": 0,
    } | changes  # fmt: skip


class Recorder:
    """Mixed into a trainer of TRL: keeps the batches, their losses, and what was generated for them."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.batches: list[dict[str, Tensor]] = []
        self.generated: list[dict[str, Tensor]] = []
        self.losses: list[float] = []
        super().__init__(*arguments, **keywords)

    def _compute_loss(self, model: Any, inputs: Any, *arguments: Any) -> Tensor:
        trainer: Any = super()
        loss = trainer._compute_loss(model, inputs, *arguments)
        self.batches.append(dict(inputs))
        self.losses.append(loss.item())
        return loss

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Tensor]:
        trainer: Any = super()
        found = trainer._generate_and_score_completions(inputs)
        self.generated.append({**found, "rewards": self.rewards})
        return found

    def _calculate_rewards(self, *arguments: Any) -> Tensor:
        trainer: Any = super()
        self.rewards = trainer._calculate_rewards(*arguments)
        return self.rewards


def dpo_trainer(seed_folder: Path, folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Any:
    """With the seed model as reference."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy, tokenizer = load_policy(str(seed_folder))
    return type("RecordedDPOTrainer", (Recorder, DPOTrainer), {})(
        policy, load_policy(str(seed_folder))[0], DPOConfig(**settings(folder, **changes)),
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
    )  # fmt: skip


def graded(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """A reward with several levels, which any text can get."""
    return [sum(ids) % 4 / 2 for ids in completion_ids]


def grpo_trainer(
    seed_folder: Path, folder: Path, reward: Callable[..., Sequence[float | None]] = graded, **changes: Any
) -> Any:
    """Batches of `BATCH` completions, sampled as the kit samples: no top-k."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    sizes = {"per_device_train_batch_size": BATCH, "num_generations": GROUP_SIZE, "max_completion_length": LIMIT}
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    policy, tokenizer = load_policy(str(seed_folder))
    return type("RecordedGRPOTrainer", (Recorder, GRPOTrainer), {})(
        policy, reward, GRPOConfig(**settings(folder, **({"loss_type": "grpo"} | sizes | sampling | changes))),
        train_dataset=Dataset.from_list(PROMPT_ROWS), processing_class=tokenizer,
    )  # fmt: skip


class LaggingEngine:
    """Stands in for vLLM in TRL: a copy of the policy that follows it every second time TRL sends weights."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy, self.sent = policy, 0
        self.model = frozen_copy(policy)

    def sync_weights(self) -> None:
        if self.sent % 2 == 0:
            copy_weights(self.policy.state_dict(), self.model.state_dict())
        self.sent += 1

    def generate(self, prompts: list[list[int]], **others: Any) -> tuple[None, list[list[int]], list[Any], None]:
        """Completions, and for each token a list with its log-prob under this copy."""
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        found = self.model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=LIMIT, pad_token_id=0
        )
        end = self.model.generation_config.eos_token_id
        rows = [row[: row.index(end) + 1] if end in row else row for row in found[:, width:].tolist()]
        rollouts = [rollout(prompt, row, [0.0] * len(row)) for prompt, row in zip(prompts, rows, strict=True)]
        with torch.no_grad():
            scores = score(self.model, rollouts)
        logprobs = [row[counted].tolist() for row, counted in zip(scores.logprobs, scores.completion_mask, strict=True)]
        return None, rows, [[[logprob] for logprob in row] for row in logprobs], None

    @classmethod
    def plugged_into(cls, trainer: Any) -> Any:
        """The trainer, which from now on samples and corrects as it does with vLLM."""
        trainer.use_vllm, trainer._last_loaded_step = True, -1
        trainer.vllm_generation = cls(trainer.model)
        return trainer


def rollout(prompt: Sequence[int], completion: Sequence[int], old_logprobs: Sequence[float]) -> Rollout:
    return Rollout(
        tuple(prompt), tuple(completion), tuple(old_logprobs), (0.0,) * len(completion), "", "stop", version=0
    )


def rollouts_of(batch: dict[str, Tensor], old_logprobs: Tensor | None = None) -> list[Rollout]:
    """The completions of a batch of TRL's GRPO trainer, without its padding."""
    found = []
    for row, counted in enumerate(batch["completion_mask"].bool()):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
        completion = batch["completion_ids"][row][counted].tolist()
        old = [0.0] * len(completion) if old_logprobs is None else old_logprobs[row][counted].tolist()
        found.append(rollout(prompt, completion, old))
    return found
