"""Faults to be found: what a run is made of, with one thing wrong.

>>> sorted(FAULTS)[:3]
['KL negated', 'KL reversed', 'dropped sync']
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kit.faults import broken
from kit.importance import TIS, PPOClip
from kit.kl import KLEstimator
from kit.objectives import DPO, GRPO, Objective
from kit.samplers import SamplerFactory, TransformersSampler
from kit.sync import Every, Never, Schedule
from kit.tasks import Arithmetic
from kit.tasks.task import Task


@dataclass(frozen=True)
class Parts:
    """What `kit.run.Run` takes besides its configuration."""

    objective: Objective
    sync: Schedule
    task: Task = field(default_factory=Arithmetic)
    ref_sync: Schedule = field(default_factory=Never)
    sampler: SamplerFactory = TransformersSampler


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        into: right parts -> the same with the fault. A TypeError if they have nothing that it could break.
        what: in a sentence.
        seen: where it shows.
    """

    into: Callable[[Parts], Parts]
    what: str
    seen: str


def _correction(right: type, wrong: type) -> Callable[[Parts], Parts]:
    def into(parts: Parts) -> Parts:
        objective = parts.objective
        if not isinstance(objective, GRPO) or type(objective.importance) is not right:
            raise TypeError(f"expected GRPO with {right.__name__}, which this fault breaks, came {objective}")
        return replace(parts, objective=replace(objective, importance=wrong(**vars(objective.importance))))

    return into


def _kl(wrong: KLEstimator) -> Callable[[Parts], Parts]:
    def into(parts: Parts) -> Parts:
        if not isinstance(parts.objective, GRPO) or not parts.objective.kl_coef:
            raise TypeError(f"expected GRPO with a KL term, which this fault breaks, came {parts.objective}")
        return replace(parts, objective=replace(parts.objective, kl_estimator=wrong))

    return into


def _sampler(wrong: SamplerFactory) -> Callable[[Parts], Parts]:
    return lambda parts: replace(parts, sampler=wrong)


def _rewards(wrong: Callable[..., list[float]]) -> Callable[[Parts], Parts]:
    return lambda parts: replace(parts, task=broken.Misjudged(parts.task, wrong))


FAULTS = {
    "inverted clip": Fault(
        _correction(PPOClip, broken.InvertedClip),
        "PPO's clip takes the better instead of the worse value where the advantage is negative: bad tokens that "
        "became likelier are left alone, and those that became rarer are pushed on without end.",
        "`offpolicy/ratio_min` and `offpolicy/kl` leave the trust region although the clip is on.",
    ),
    "gradient through the weight": Fault(
        _correction(TIS, broken.GradientThroughWeight),
        "The importance weight is not detached, so the loss is weight x log pi x advantage with a gradient through "
        "both: for every token less likely than 1/e it has the wrong sign.",
        "`entropy` and accuracy move the wrong way from the first steps, on fresh samples too.",
    ),
    "KL reversed": Fault(
        _kl(broken.reversed_k3),
        "The KL estimator got its arguments in the other order, which on samples of the policy estimates neither "
        "direction; as a loss it pulls by the ratio instead of by its logarithm.",
        "in no curve of a run as short as these; called with two numbers, the estimator is not what its equation says.",
    ),
    "KL negated": Fault(
        _kl(broken.negated_k3),
        "The KL term has the wrong sign: to be far from the reference is what pays.",
        "`kl` is negative, which this estimator cannot be, and grows.",
    ),
    "dropped sync": Fault(
        _sampler(broken.DroppedSync),
        "The sampler never takes up the weights that it is sent: the run is offline and says that it is online.",
        "receipts: the two digests differ; `offpolicy/kl` grows at `sync/staleness` 0.",
    ),
    "end token masked": Fault(
        _sampler(broken.EndTokenMasked),
        "The completion mask is one token short, so whether to stop is never learned.",
        "microscope: no completion shows an end token; length and truncated completions drift.",
    ),
    "truncation left on": Fault(
        _sampler(broken.TruncationLeftOn),
        f"The sampler draws from the top {broken.TOP_P:.0%} of the probability only.",
        "`offpolicy/ratio_mean` is below 1 at staleness 0, since the policy gives less to each token than the sampler.",
    ),
    "verifier silently 0": Fault(
        _rewards(broken.long_answers_are_zero),
        "The verifier fails on answers of three digits, and somebody's `except` returns 0.",
        "accuracy starts below what the seed model can do; microscope: right answers with reward 0, all of one kind.",
    ),
    "rewards shifted": Fault(
        _rewards(broken.shifted_by_one),
        "The list of rewards is one place off the list of completions.",
        "`reward` does not rise; microscope: right completions that are rejected, wrong ones that are chosen.",
    ),
    "reference follows": Fault(
        lambda parts: replace(parts, ref_sync=broken.FollowingReference()),
        "The reference is copied from the policy at every step.",
        "`rewards/margins` is 0 and `pairs/weight` one half at every step.",
    ),
}

ONLINE, STALE = Every(1), Every(10)
SETTINGS = {
    "DPO, s = 1": Parts(DPO(), ONLINE),
    "GRPO with PPO's clip, s = 10": Parts(GRPO(importance=PPOClip()), STALE),
    "GRPO with TIS, s = 1": Parts(GRPO(importance=TIS()), ONLINE),
    "GRPO with a KL term, s = 1": Parts(GRPO(kl_coef=0.5), ONLINE),
}
