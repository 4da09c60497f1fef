"""TRL 1.16's own loss code, called on given log-probs: its trainers' constants without their models.

`_compute_loss` of TRL's trainers reads constants from the trainer and log-probs from the model. Both are stood in for
here by plain namespaces, so that the arithmetic between log-probs and loss is TRL's, and nothing else is.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Loss = tuple[Tensor, dict[str, float]]
ACCELERATOR = SimpleNamespace(
    gather=lambda tensor: tensor, gather_for_metrics=lambda tensor: tensor, reduce=lambda tensor, reduction: tensor,
    num_processes=1, device=torch.device("cpu"),
)  # fmt: skip


def trl_grpo_loss(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    importance_weights: Tensor | None = None,
    loss_type: str = "grpo",
    beta: float = 0.0,
    bias_correction: bool = False,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
    level: str = "token",
    max_completion_length: int = 1,
    generation_tokens: int | None = None,
    steps_per_generation: int = 1,
) -> Loss:
    """`GRPOTrainer._compute_loss`: the loss of one batch, (seq, tok) log-probs and (seq,) advantages, and its metrics.

    Without `old_logprobs` TRL takes the batch for a fresh one. `importance_weights` are what it computes for vLLM's
    samples. `generation_tokens` are those of all `steps_per_generation` batches that were generated together.
    """
    from trl.trainer.grpo_trainer import GRPOTrainer

    logged: dict[str, list[float]] = defaultdict(list)
    trainer: Any = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        model=SimpleNamespace(training=True), accelerator=ACCELERATOR, _metrics={"train": logged},
        args=SimpleNamespace(
            delta=delta, use_bias_correction_kl=bias_correction, steps_per_generation=steps_per_generation
        ),
        beta=beta, loss_type=loss_type, epsilon_low=epsilon_low, epsilon_high=epsilon_high,
        importance_sampling_level=level, max_completion_length=max_completion_length, tools=None,
        aux_loss_enabled=False, _entropy_bonus_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        use_vllm=importance_weights is not None, vllm_importance_sampling_correction=True,
        current_gradient_accumulation_steps=1,
    )  # fmt: skip
    one_column = torch.zeros(len(mask), 1)
    inputs = {
        "prompt_ids": one_column, "prompt_mask": one_column, "completion_ids": torch.zeros(mask.shape),
        "completion_mask": mask.long(), "advantages": advantages, "old_per_token_logps": old_logprobs,
        "ref_per_token_logps": ref_logprobs, "importance_sampling_ratio": importance_weights,
        "num_items_in_batch": mask.sum() if generation_tokens is None else torch.tensor(generation_tokens),
    }  # fmt: skip
    loss: Tensor = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    return loss, {name: values[0] for name, values in logged.items()}


def trl_importance_weights(logprobs: Tensor, old_logprobs: Tensor, mode: str, low: float | None, high: float) -> Tensor:
    """What TRL multiplies the loss of vLLM's samples by; in TRL the lines stand in the middle of generation.

    So they are written out here (`_generate_and_score_completions`, token_truncate and token_mask); that a whole step
    of TRL does the same is in test_parity_training.py.
    """
    ratio = (logprobs.detach() - old_logprobs).exp()
    if mode == "token_truncate":
        return ratio.clamp(min=low, max=high)
    return ratio.masked_fill((ratio < (0.0 if low is None else low)) | (ratio > high), 0.0)


def trl_dpo_loss(
    logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, beta: float = 0.1, weights: dict[str, float] | None = None
) -> Loss:
    """`DPOTrainer._compute_loss`: (seq, tok) log-probs whose first half of rows is chosen, the second rejected.

    `weights` are TRL's `loss_type` and `loss_weights`; the default is `{"sigmoid": 1.0}`.
    """
    from trl.trainer.dpo_trainer import DPOTrainer

    def model_of(rows: Tensor) -> Any:  # TRL's fused output layer gives 0 where a label is ignored
        zeros = torch.zeros(mask.shape, dtype=rows.dtype)
        outputs = SimpleNamespace(
            log_probs=torch.where(mask, rows, 0.0), entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )
        return lambda **_: outputs

    logged: dict[str, list[float]] = defaultdict(list)
    losses = {"sigmoid": 1.0} if weights is None else weights
    module: Any = torch.nn.Module()
    module.is_gradient_checkpointing = False
    trainer: Any = SimpleNamespace(
        model=module, ref_model=model_of(ref_logprobs), accelerator=ACCELERATOR,
        _metrics={"train": logged}, args=SimpleNamespace(gradient_checkpointing_kwargs=None), beta=beta,
        loss_types=list(losses), loss_weights=list(losses.values()), ld_alpha=None, f_divergence_type="reverse_kl",
        aux_loss_enabled=False, precompute_ref_logps=False, use_weighting=False, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    before = torch.zeros(len(mask), 1, dtype=torch.long)  # one token of prompt
    completion_mask = torch.cat([before, mask.long()], dim=1)
    inputs = {
        "input_ids": torch.zeros_like(completion_mask), "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
    }  # fmt: skip
    loss: Tensor = DPOTrainer._compute_loss(trainer, model_of(logprobs), inputs, return_outputs=False)
    return loss, {name: values[0] for name, values in logged.items()}
