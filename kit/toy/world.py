"""The world: a reward for every sequence, and policies that are tables."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kit.sync import Drift


@dataclass(frozen=True, eq=False)
class ToyWorld:
    r"""All sequences of one length over a small vocabulary, and what each is worth.

    A policy is a table of logits: one row for every prefix, the empty one first, then those of one token in order, then
    those of two. A row is the next-token distribution after its prefix:

    .. math:: \log\pi(y) = \sum_t \log\mathrm{softmax}(z_{y_{<t}})_{y_t}

    Below, `seq` runs over all sequences in the order of `sequences`, so that sums over it are expectations.

    Attributes:
        rewards_by_token: the reward of the sequence (a, b, c) at [a, b, c]; any unit, float64 for exact work.

    Raises:
        ValueError: if the axes differ in size, there are no tokens or one, or more sequences than can be enumerated.

    >>> world = ToyWorld(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))  # two tokens; only the sequence (0, 1) is right
    >>> world.sequences.tolist(), world.rewards.tolist()
    ([[0, 0], [0, 1], [1, 0], [1, 1]], [0.0, 1.0, 0.0, 0.0])
    >>> world.expected_reward(world.zeros()).item()  # uniform
    0.25
    """

    rewards_by_token: Float[Tensor, "..."]

    def __post_init__(self) -> None:
        shape = tuple(self.rewards_by_token.shape)
        if len(set(shape)) != 1 or shape[0] < 2:
            raise ValueError(f"expected rewards of shape (vocab, ..., vocab) with vocab >= 2, came {shape}")
        if self.rewards_by_token.numel() > 4096:
            raise ValueError(f"expected at most 4096 sequences, came {self.rewards_by_token.numel()}: sample them")

    @property
    def vocab(self) -> int:
        return self.rewards_by_token.shape[0]

    @property
    def length(self) -> int:
        """Tokens of every sequence."""
        return self.rewards_by_token.ndim

    @cached_property
    def rewards(self) -> Float[Tensor, " seq"]:
        return self.rewards_by_token.flatten()

    @cached_property
    def sequences(self) -> Int[Tensor, "seq tok"]:
        """Every sequence, in counting order."""
        return torch.cartesian_prod(*[torch.arange(self.vocab)] * self.length).view(-1, self.length)

    @cached_property
    def rows(self) -> Int[Tensor, "seq tok"]:
        """The row of a policy's table that each token is drawn from."""
        first = torch.tensor([sum(self.vocab**k for k in range(t)) for t in range(self.length)])
        rank = torch.zeros_like(self.sequences)  # of the prefix among those of its length
        for t in range(1, self.length):
            rank[:, t] = rank[:, t - 1] * self.vocab + self.sequences[:, t - 1]
        return first + rank

    def zeros(self) -> Float[Tensor, "prefix vocab"]:
        """The table of the uniform policy."""
        prefixes = sum(self.vocab**t for t in range(self.length))
        return torch.zeros(prefixes, self.vocab, dtype=self.rewards.dtype)

    def logprobs(self, logits: Float[Tensor, "prefix vocab"]) -> Float[Tensor, "seq tok"]:
        """Of each token of each sequence, nats; differentiable, and what the kit's losses take.

        >>> world = ToyWorld(torch.tensor([1.0, 0.0]))
        >>> [round(p.item(), 4) for p in world.logprobs(torch.tensor([[3.0, 1.0]]).log()).exp()]  # 3 : 1
        [0.75, 0.25]
        """
        return logits.log_softmax(-1)[self.rows, self.sequences]

    def probabilities(self, logits: Float[Tensor, "prefix vocab"]) -> Float[Tensor, " seq"]:
        """Of each sequence; they sum to 1."""
        return self.logprobs(logits).sum(-1).exp()

    def expected_reward(self, logits: Float[Tensor, "prefix vocab"]) -> Float[Tensor, ""]:
        r""":math:`E_{y\sim\pi}[r(y)]`, in the unit of the rewards; differentiable."""
        return self.probabilities(logits) @ self.rewards

    def scores(self, logits: Float[Tensor, "prefix vocab"]) -> Float[Tensor, "seq tok prefix vocab"]:
        r"""The gradient of each token's log-probability in the table: one-hot minus probabilities, in its own row.

        .. math:: \partial \log\pi_t / \partial z_{p,j} = 1[p = y_{<t}] \, (1[j = y_t] - \pi(j|p))

        >>> world = ToyWorld(torch.tensor([1.0, 0.0]))
        >>> world.scores(world.zeros())[0].tolist()  # the first sequence, its only token, the only row
        [[[0.5, -0.5]]]
        """
        in_row = F.one_hot(self.rows, len(logits)).to(logits.dtype)
        centred = F.one_hot(self.sequences, self.vocab) - logits.softmax(-1)[self.rows]
        return in_row[..., None] * centred[:, :, None, :]

    def policy_gradient(self, logits: Float[Tensor, "prefix vocab"]) -> Float[Tensor, "prefix vocab"]:
        r"""The exact gradient of the expected reward, summed over all sequences.

        .. math:: \nabla J = \sum_y \pi(y) \, r(y) \, \nabla\log\pi(y)

        Returns:
            Reward units per unit of logit.

        Source: REINFORCE, Williams 1992, https://doi.org/10.1007/BF00992696.

        >>> world = ToyWorld(torch.tensor([1.0, 0.0]))
        >>> world.policy_gradient(world.zeros()).tolist()  # 1/2 * 1 * (1 - 1/2), and 1/2 * 1 * (-1/2)
        [[0.25, -0.25]]
        """
        weights = self.probabilities(logits) * self.rewards
        return torch.einsum("s,stpv->pv", weights, self.scores(logits))

    def exact_step(self, logits: Float[Tensor, "prefix vocab"], learning_rate: float) -> Float[Tensor, "prefix vocab"]:
        """The table after one step of plain gradient ascent on the expected reward.

        >>> world = ToyWorld(torch.tensor([1.0, 0.0]))
        >>> world.exact_step(world.zeros(), 4.0).tolist()
        [[1.0, -1.0]]
        """
        return logits + learning_rate * self.policy_gradient(logits)

    def kl(
        self, logits: Float[Tensor, "prefix vocab"], other: Float[Tensor, "prefix vocab"], *, per_token: bool = False
    ) -> Float[Tensor, ""]:
        r"""KL(policy || other), exact; differentiable.

        .. math:: \sum_y \pi(y) \, (\log\pi(y) - \log\pi'(y))

        Args:
            logits: of the policy, over whose sequences the mean is taken.
            other: the policy that it is compared with.
            per_token: divide by the length. By the chain rule that is the mean over positions of the next-token KL on
                prefixes that the *policy* wrote.

        Returns:
            Nats a sequence, or a token; >= 0.

        >>> world = ToyWorld(torch.tensor([1.0, 0.0]))
        >>> round(world.kl(torch.tensor([[3.0, 1.0]]).log(), world.zeros()).item(), 4)  # 3/4 log 3/2 + 1/4 log 1/2
        0.1308
        """
        log_ratio = (self.logprobs(logits) - self.logprobs(other)).sum(-1)
        return self.probabilities(logits) @ log_ratio / (self.length if per_token else 1)

    def drift(self, logits: Float[Tensor, "prefix vocab"], sampler_logits: Float[Tensor, "prefix vocab"]) -> Drift:
        r"""What `kit.offpolicy` estimates, exactly: per token, on the *sampler's* prefixes.

        .. math:: E_{y\sim\mu} \frac1T \sum_t (\rho_t\log\rho_t - \rho_t + 1), \qquad
                  E_{y\sim\mu} \frac1T \sum_t \log^2\rho_t

        Returns:
            KL(policy || sampler), nats a token, and the mean squared log-ratio. With one token the first is `kl`;
            with more it is not, since the policy has other prefixes.

        >>> world = ToyWorld(torch.tensor([1.0, 0.0]))
        >>> round(world.drift(torch.tensor([[3.0, 1.0]]).log(), world.zeros()).kl, 4)
        0.1308
        """
        log_ratio = self.logprobs(logits) - self.logprobs(sampler_logits)
        ratio, weights = log_ratio.exp(), self.probabilities(sampler_logits)
        kl = weights @ (ratio * log_ratio - ratio + 1).mean(-1)
        return Drift(kl.item(), (weights @ log_ratio.square().mean(-1)).item())

    def entropy(self, logits: Float[Tensor, "prefix vocab"]) -> Float[Tensor, ""]:
        r""":math:`-\sum_y \pi(y)\log\pi(y)`, nats a *sequence*; differentiable.

        >>> world = ToyWorld(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        >>> round(world.entropy(world.zeros()).item(), 4)  # log 4
        1.3863
        """
        return -self.probabilities(logits) @ self.logprobs(logits).sum(-1)

    def sample(
        self, logits: Float[Tensor, "prefix vocab"], count: int, generator: torch.Generator
    ) -> Int[Tensor, " draw"]:
        """Independent draws, as indices into `sequences`."""
        return torch.multinomial(self.probabilities(logits), count, replacement=True, generator=generator)

    def optimum(self, ref_logits: Float[Tensor, "prefix vocab"], beta: float) -> Float[Tensor, " seq"]:
        r"""The policy that maximizes expected reward minus beta times KL(policy || reference).

        .. math:: \pi^*(y) = \frac{\pi_{ref}(y) \, e^{r(y)/\beta}}{\sum_{y'} \pi_{ref}(y') \, e^{r(y')/\beta}}

        Args:
            ref_logits: of the reference.
            beta: reward units per nat, > 0.

        Returns:
            Probabilities of the sequences; `table` makes a policy of them.

        Raises:
            ValueError: if beta <= 0.

        Source: Eq. 4 of Rafailov et al. 2023, https://arxiv.org/abs/2305.18290.

        >>> world = ToyWorld(torch.tensor([1.0, 0.0]))
        >>> best = world.optimum(world.zeros(), beta=1 / torch.tensor(3.0).log().item())
        >>> [round(p, 4) for p in best.tolist()]  # e^(log 3) : 1
        [0.75, 0.25]
        """
        if not beta > 0:
            raise ValueError(f"expected beta > 0, came {beta}: at 0 the best takes all")
        return (self.logprobs(ref_logits).sum(-1) + self.rewards / beta).softmax(-1)

    def table(self, probabilities: Float[Tensor, " seq"]) -> Float[Tensor, "prefix vocab"]:
        r"""The policy that gives the sequences these probabilities: sums over what follows each prefix, as logits.

        Raises:
            ValueError: if they are not one positive number a sequence that sum to 1.

        >>> world = ToyWorld(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        >>> world.table(torch.tensor([0.125, 0.375, 0.25, 0.25])).exp().tolist()  # P(0), P(1); P(00), ..
        [[0.5, 0.5], [0.125, 0.375], [0.25, 0.25]]
        """
        total = probabilities.sum().item()
        if probabilities.shape != self.rewards.shape or not (probabilities > 0).all() or abs(total - 1) > 1e-6:
            raise ValueError(f"expected {len(self.rewards)} positive probabilities, came {probabilities.tolist()}")
        masses = torch.zeros_like(self.zeros(), dtype=probabilities.dtype)
        entries = (self.rows, self.sequences)
        return masses.index_put(entries, probabilities[:, None].expand_as(self.rows), accumulate=True).log()
