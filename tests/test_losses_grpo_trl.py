"""GRPO's loss, gradient and metrics are those of TRL 1.16: its own function, called on our tensors."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kit.importance import CISPO, GSPO, Importance, PPOClip
from kit.losses import grpo_loss

# Our settings and TRL's. Its CISPO averages over tokens, of which this batch has 20. The fractions that are clipped are
# compared for the plain clip alone: of the others TRL counts sequences, or one of the two sides, or has no such metric.
LENGTHS = [5, 1, 3, 4, 2, 5]
CASES: dict[str, tuple[Importance, dict[str, Any], dict[str, Any]]] = {
    "clip, sequence": (PPOClip(0.2, 0.3), {"aggregate": "sequence"}, {"loss_type": "grpo"}),
    "clip, token": (PPOClip(0.2, 0.3), {"aggregate": "token"}, {"loss_type": "bnpo"}),
    "clip, constant": (
        PPOClip(0.2, 0.3),
        {"aggregate": "constant", "max_completion_length": 7},
        {"loss_type": "dr_grpo", "max_completion_length": 7},
    ),
    "clip, two-sided": (
        PPOClip(0.2, 0.3, ratio_max=1.4),
        {"aggregate": "sequence"},
        {"loss_type": "grpo", "delta": 1.4},
    ),
    "gspo": (
        GSPO(0.03, 0.04),
        {"aggregate": "sequence"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
    ),
    "cispo": (CISPO(1.3), {"aggregate": "token"}, {"loss_type": "cispo", "epsilon_high": 1.3}),
}
METRICS = ["clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"]
OTHER_METRICS = ["entropy", "kl", "clip_ratio/low_min", "clip_ratio/high_max", "cispo_clip_ratio"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.filterwarnings("ignore")  # TRL's imports
def test_loss_gradient_and_metrics_are_those_of_trl(case: str, kl_coef: float) -> None:
    from trl.trainer.grpo_trainer import GRPOTrainer

    correction, ours_as, theirs_as = CASES[case]
    generator = torch.Generator().manual_seed(0)
    shape = (6, 5)
    old, ref = (-2 * torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    logprobs = (old + 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
    logged: dict[str, list[float]] = {name: [] for name in (*METRICS, *OTHER_METRICS)}
    trainer = trl_trainer(logprobs, kl_coef, logged, **theirs_as)
    inputs = {
        "prompt_ids": torch.zeros(6, 1), "prompt_mask": torch.ones(6, 1), "completion_ids": torch.zeros(shape),
        "completion_mask": mask.long(), "advantages": advantages, "old_per_token_logps": old,
        "ref_per_token_logps": ref, "num_items_in_batch": torch.tensor(20.0),
    }  # fmt: skip
    theirs: Tensor = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    ours, metrics = grpo_loss(
        logprobs, old, advantages, mask, importance=correction, ref_logprobs=ref, kl_coef=kl_coef, **ours_as
    )
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    gradients = [torch.autograd.grad(loss, logprobs)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    if kl_coef:
        assert metrics["kl"] == pytest.approx(logged["kl"][0], abs=1e-6)
    if case in ("clip, sequence", "clip, token", "clip, constant"):
        for name in METRICS:
            assert metrics[name] == pytest.approx(logged[name][0], abs=1e-6)  # TRL averages flags in float32
        assert metrics["clip_ratio/low_mean"] > 0 and metrics["clip_ratio/high_mean"] > 0
    assert metrics["clip_ratio/region_mean"] > 0


def trl_trainer(logprobs: Tensor, kl_coef: float, logged: dict[str, list[float]], **changes: Any) -> Any:
    """What `GRPOTrainer._compute_loss` reads from its trainer: constants, one process, and the log-probs of a model."""
    accelerator = SimpleNamespace(
        gather=lambda tensor: tensor, reduce=lambda tensor, reduction: tensor, num_processes=1
    )
    args = SimpleNamespace(delta=changes.pop("delta", None), use_bias_correction_kl=False, steps_per_generation=1)
    constants: dict[str, Any] = {"epsilon_low": 0.2, "epsilon_high": 0.3, "importance_sampling_level": "token"}
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        model=SimpleNamespace(training=True), args=args, beta=kl_coef, tools=None, aux_loss_enabled=False,
        _entropy_bonus_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        current_gradient_accumulation_steps=1, accelerator=accelerator, _metrics={"train": logged},
        **(constants | changes),
    )  # fmt: skip
