r"""What GRPO does about completions that another policy sampled: importance corrections, as values.

Below, :math:`\rho_t = e^{\log\pi - \log\pi_{old}}` is the policy's probability of a token over the sampler's at
generation time, `sg` stops the gradient, and a surrogate's expected gradient is the policy gradient where it is exact.
A token's ratio corrects for that token alone: what came before it was still sampled by the other policy. The bias that
remains grows with the drift and the length; a product over the sequence would have none, and a useless variance.

Right after a sync every ratio is 1 and all corrections have one gradient, that of plain REINFORCE. With a single
gradient pass a batch (`reuse_epochs=1`) TIS and CISPO of one `ratio_max` have the same gradient too, and DecoupledPPO
is TIS without a cap.
"""

from collections.abc import Callable

from kit.importance.clips import GSPO, DecoupledPPO, PPOClip
from kit.importance.correction import MAX_LOG_RATIO, Importance, Surrogate, Tokens
from kit.importance.m2po import M2PO
from kit.importance.weights import CISPO, TIS, IcePop, NoCorrection

IMPORTANCE: dict[str, Callable[..., Importance]] = {
    "none": NoCorrection,
    "clip": PPOClip,
    "tis": TIS,
    "icepop": IcePop,
    "gspo": GSPO,
    "cispo": CISPO,
    "decoupled": DecoupledPPO,
    "m2po": M2PO,
}  # for papermill, whose parameters are strings

__all__ = [
    "CISPO", "GSPO", "IMPORTANCE", "M2PO", "MAX_LOG_RATIO", "TIS", "DecoupledPPO", "IcePop", "Importance",
    "NoCorrection", "PPOClip", "Surrogate", "Tokens",
]  # fmt: skip
