"""A world small enough to enumerate: what the real one only estimates can be computed here, and checked by hand.

Three to six tokens, sequences of one to three of them, a table of rewards, and policies that are tables of logits. All
expectations are finite sums: of rewards, gradients, KL, and of what the kit's own losses say when the sampler is stale.
For teaching and for tests; nothing in a training run uses it.
"""

from kit.toy.estimators import Estimate, dpo_estimate, grpo_estimate
from kit.toy.training import ToyRun, ToyState, train
from kit.toy.world import ToyWorld

__all__ = ["Estimate", "ToyRun", "ToyState", "ToyWorld", "dpo_estimate", "grpo_estimate", "train"]
