"""Losses: pure functions of tensors and keyword constants that return `(loss, metrics)`.

Metrics are detached Python floats. Log-probabilities and entropies are in nats; `completion_mask` is True where a token
counts; what runs over what is said in each: summed or averaged over tokens, mean over pairs, sequences or tokens.
"""

from kit.losses.bradley_terry import bradley_terry_loss
from kit.losses.dpo import dpo_loss
from kit.losses.entropy import entropy_loss
from kit.losses.group_dpo import group_dpo_loss
from kit.losses.grpo import grpo_loss
from kit.losses.nll import nll_loss

__all__ = ["bradley_terry_loss", "dpo_loss", "entropy_loss", "group_dpo_loss", "grpo_loss", "nll_loss"]
