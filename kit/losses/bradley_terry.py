"""The loss that trains a reward model on preferences.

Bradley and Terry 1952, "Rank Analysis of Incomplete Block Designs", Biometrika 39: who is preferred is a coin toss,
with the difference of two scores for log-odds. As a loss for scores of completions: Stiennon et al. 2020, "Learning to
summarize from human feedback", https://arxiv.org/abs/2009.01325. DPO is this loss with implicit rewards for scores.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kit.masking import require_same_shape


def bradley_terry_loss(
    chosen_scores: Float[Tensor, " pair"],
    rejected_scores: Float[Tensor, " pair"],
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    r"""Mean negative log-likelihood of the preferences, if scores are utilities.

    .. math:: \ell = -\log\sigma(r_w - r_l), \qquad \partial\ell / \partial r_w = -\sigma(r_l - r_w)

    Only differences are identified: the same number added to every score of a prompt changes nothing.

    Args:
        chosen_scores: r(x, y_w), one score a pair of the completion that was preferred, in nats of log-odds.
        rejected_scores: r(x, y_l), of the other completion for the same prompt, likewise.

    Returns:
        Scalar loss in nats, *mean over pairs*, and metrics, means over pairs: `accuracy` (fraction with the chosen
        scored higher; a tie is not right) and `margin` (chosen minus rejected).

    Raises:
        ValueError: if there are no pairs, the shapes differ, or scores are not one number a pair.

    Source: §3.4, "Reward models", of Stiennon et al. Where all scores are equal the loss is log 2.

    >>> loss, metrics = bradley_terry_loss(torch.tensor([0.0, 3.0]), torch.tensor([0.0, 1.0]))
    >>> round(loss.item(), 4), metrics  # (log 2 + log(1 + exp(-2))) / 2
    (0.41, {'accuracy': 0.5, 'margin': 1.0})
    """
    require_same_shape({"chosen_scores": chosen_scores, "rejected_scores": rejected_scores})
    if chosen_scores.ndim != 1 or not len(chosen_scores):
        raise ValueError(
            f"expected one score a pair, (pair,), came {tuple(chosen_scores.shape)}: take the one output of a "
            "sequence classifier, logits[:, 0], and skip a batch without pairs"
        )
    margins = chosen_scores - rejected_scores
    per_pair = torch.stack([(margins > 0).to(margins.dtype), margins]).detach()
    accuracy, margin = per_pair.mean(dim=1).tolist()  # one transfer from the device
    return -F.logsigmoid(margins).mean(), {"accuracy": accuracy, "margin": margin}
