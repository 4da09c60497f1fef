"""Expectation, bias and variance of a loss's gradient, with every sequence that a sampler could write counted."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kit.importance import IMPORTANCE, Importance
from kit.losses import dpo_loss, grpo_loss
from kit.toy.world import ToyWorld

FIT_DRAWS = 4096  # sequences from which a correction that must be fitted learns, as it would from a large step


class Estimate(NamedTuple):
    """What one draw says of the direction to go, over all draws."""

    expectation: Float[Tensor, "prefix vocab"]
    bias: float  # 2-norm of (expectation - exact policy gradient)
    variance: float  # mean squared distance from the expectation: of one draw; a mean of n has this over n


def grpo_estimate(
    world: ToyWorld,
    logits: Float[Tensor, "prefix vocab"],
    sampler_logits: Float[Tensor, "prefix vocab"],
    importance: str | Importance = "none",
    *,
    prox_logits: Float[Tensor, "prefix vocab"] | None = None,
) -> Estimate:
    r"""Minus the gradient of `kit.losses.grpo_loss` on one sequence of the sampler, enumerated.

    .. math:: E_{y\sim\mu}[-\nabla\ell(y)], \qquad A(y) = r(y) - E_{y'\sim\mu}[r(y')]

    The loss is asked for its slope in each token's log-probability; the chain rule through the table is exact. The
    advantage is that of a very large group. `aggregate="sum"`, whose fresh gradient is the policy gradient.

    Args:
        logits: of the policy.
        sampler_logits: of mu, which writes the sequences.
        importance: a name in `kit.importance.IMPORTANCE`, or a value. One that has to be fitted to a step (`M2PO`) is
            fitted to 4096 sequences of the sampler, drawn with seed 0.
        prox_logits: of the policy before the first pass over a batch, for "decoupled"; None = this is the first pass.

    Returns:
        Reward units per unit of logit; `variance` in their square.

    >>> world = ToyWorld(torch.tensor([1.0, 0.0]))
    >>> fresh = grpo_estimate(world, world.zeros(), world.zeros())
    >>> fresh.expectation.tolist(), fresh.bias  # the policy gradient
    ([[0.25, -0.25]], 0.0)
    """
    old = world.logprobs(sampler_logits)
    weights = world.probabilities(sampler_logits)
    logprobs = world.logprobs(logits).detach().requires_grad_()
    correction = IMPORTANCE[importance]() if isinstance(importance, str) else importance
    if correction.needs_fit:
        drawn = world.sample(sampler_logits, FIT_DRAWS, torch.Generator().manual_seed(0))
        correction = correction.fitted((logprobs.detach() - old)[drawn].flatten())
    loss, _ = grpo_loss(
        logprobs,
        old,
        world.rewards - weights @ world.rewards,
        torch.ones_like(world.rows, dtype=torch.bool),
        importance=correction,
        aggregate="sum",
        prox_logprobs=None if prox_logits is None else world.logprobs(prox_logits),
    )
    slopes = torch.autograd.grad(loss, logprobs)[0] * len(old)  # the loss is a mean over sequences: undo it
    draws = torch.einsum("st,stpv->spv", -slopes, world.scores(logits))
    return _moments(world, logits, draws, weights)


def dpo_estimate(
    world: ToyWorld,
    logits: Float[Tensor, "prefix vocab"],
    sampler_logits: Float[Tensor, "prefix vocab"],
    ref_logits: Float[Tensor, "prefix vocab"],
    *,
    beta: float = 0.1,
) -> Estimate:
    r"""Minus the gradient of `kit.losses.dpo_loss` on two sequences of the sampler, better against worse, enumerated.

    .. math:: E_{y, y'\sim\mu}\big[ 1[r(y) \ne r(y')] \; \beta\sigma(-m) \, \nabla (\log\pi(y_w) - \log\pi(y_l)) \big]

    A tie trains nothing and counts in the mean, as with the denominator "prompts".

    Args:
        logits: of the policy.
        sampler_logits: of mu, which writes both sequences.
        ref_logits: of the reference.
        beta: strength of the pull toward the reference, > 0.

    Returns:
        Per unit of logit. `bias` compares with the policy gradient although DPO does not estimate it: look at the
        angle between `expectation` and `policy_gradient` instead. `variance` is that of one pair.

    >>> world = ToyWorld(torch.tensor([1.0, 0.0]))
    >>> found = dpo_estimate(world, world.zeros(), world.zeros(), world.zeros(), beta=1.0)
    >>> found.expectation.tolist()  # a pair half of the time: 1/2 * sigma(0) * ([1/2, -1/2] - [-1/2, 1/2])
    [[0.25, -0.25]]
    """
    better, worse = (world.rewards[:, None] > world.rewards[None, :]).nonzero(as_tuple=True)
    sequence_scores = world.scores(logits).sum(1)
    log_pi, ref = (world.logprobs(table).sum(-1).detach() for table in (logits, ref_logits))
    chosen = log_pi[better].requires_grad_()
    loss, _ = dpo_loss(chosen, log_pi[worse], ref[better], ref[worse], beta=beta)
    slopes = torch.autograd.grad(loss, chosen)[0] * len(chosen)  # minus that of the rejected
    draws = -slopes[:, None, None] * (sequence_scores[better] - sequence_scores[worse])
    mu = world.probabilities(sampler_logits)
    weights = 2 * mu[better] * mu[worse]  # either may come first
    tie = (1 - weights.sum()).view(1)
    return _moments(world, logits, torch.cat([draws, torch.zeros_like(draws[:1])]), torch.cat([weights, tie]))


def _moments(
    world: ToyWorld,
    logits: Float[Tensor, "prefix vocab"],
    draws: Float[Tensor, "draw prefix vocab"],
    weights: Float[Tensor, " draw"],
) -> Estimate:
    """Moments of the draws under their probabilities."""
    expectation = torch.einsum("d,dpv->pv", weights, draws)
    bias = (expectation - world.policy_gradient(logits)).norm().item()
    return Estimate(expectation, bias, (weights @ (draws - expectation).square().sum((1, 2))).item())
