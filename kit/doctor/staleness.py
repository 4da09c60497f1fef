"""Is the sampler the policy it should be? Told from the distance between the two on the sampler's own tokens."""

import statistics
from collections.abc import Iterator

from kit.doctor.finding import Finding
from kit.doctor.window import FIRST, LAST, History, Record, Setup, number

# Nats a token, KL(policy || sampler) of two copies of one policy: about half the squared difference of log-probs.
# float32: 1e-6 is a difference of 1.4e-3. Measured: 2e-12 (transformers). Follows from differences of log-probs:
# 1e-12 (vLLM on CPU: 1.6e-6), 5e-7 (TF32's 10 bits: about 1e-3).
NOISE = 1e-6
NOISE_LOW_PRECISION = 2e-3  # bfloat16 or quantized. trl#5312: differences of 0.015 are usual (1e-4), 0.2 a fault (2e-2)
GROWTH, GROWN = 10.0, 2e-4  # times the start's; and nats a token, twice what bfloat16 engines differ by
STILL = 1e-9  # weight units: Adam moves a weight by about learning_rate, and float32 near 0.02 has steps of 1.9e-9
FAR = 0.2  # nats a token


def sampler_stale(history: History, setup: Setup) -> Iterator[Finding]:
    """`sampler_stale` (error): `offpolicy/kl` is above what engines differ by although the sampler should be the
    policy: its staleness is 0, or learning_rate times staleness is below 1e-9, so that no update can have moved a
    weight.

    Above means: more than 1e-6 nats a token in float32, more than 2e-3 in bfloat16 or with quantized weights; or, in
    the latter, 10 times what it was at the first such records and above 2e-4: an adapter that is never delivered shows
    in growth. In 117 float32 runs such records have at most 3e-12, and one update alone makes 2e-6 to 4e-3.

    Source: verl#7495 ("masquerades as staleness"), unsloth PR#8701, trl#5312, open-instruct#1473 (grows even at
    learning rate 0), NeMo-RL PR#4018 (stale prefix cache), trl#3500 (dropout).
    """
    fresh = [kl for record in history.last if (kl := _of_equals(record)) is not None]
    if not fresh or _of_equals(history.last[-1]) is None:
        return
    limit = NOISE_LOW_PRECISION if setup.is_low_precision else NOISE
    at_first = [kl for record in history.first if (kl := _of_equals(record)) is not None]
    start, now = statistics.fmean(at_first) if at_first else 0.0, statistics.fmean(fresh)
    has_grown = len(at_first) == FIRST and len(fresh) == LAST and now > max(GROWTH * start, GROWN)
    if fresh[-1] > limit or has_grown:
        yield Finding(
            "sampler_stale",
            "error",
            f"KL(policy || sampler) is {fresh[-1]:.2g} nats a token where both should be the same weights (at the "
            f"start {start:.2g}; engines differ by less than {limit:g})",
            "the sampler does not run the policy: look at receipts.jsonl, switch dropout off, reset the prefix cache "
            "at a sync, name adapters by version; and use one temperature on both sides",
            history.step,
        )


def far_off_policy(history: History, setup: Setup) -> Iterator[Finding]:
    """`far_off_policy` (warning): `offpolicy/kl`, median of the last 5 batches, is above 0.2 nats a token while the
    sampler lags. (A median, because single batches are far off in runs that go well.)

    Source: 101 stale runs of this project's studies off_policy and on_drift and of its notebooks (2026-11-24). Of the
    15 that ever pass 0.2, 12 end 0.1 or more below their best accuracy; of the other 86, 6. Asynchronous runs collapse
    without a correction: NeMo-RL PR#1098.
    """
    values, lags = history.recent("offpolicy/kl"), history.recent("sync/staleness")
    if not values or not lags or lags[-1] == 0 or statistics.median(values) <= FAR:
        return
    yield Finding(
        "far_off_policy",
        "warning",
        f"KL(policy || sampler) is {statistics.median(values):.2g} nats a token (median of {LAST} batches); the "
        f"sampler lags {lags[-1]:.0f} updates",
        "sync more often (a smaller s, or OnDrift(max_kl=...)), lower learning_rate, or correct for it "
        "(kit.importance)",
        history.step,
    )


def _of_equals(record: Record) -> float | None:
    """The distance of a record at which sampler and policy should be the same."""
    kl, lag, rate = (number(record, name) for name in ("offpolicy/kl", "sync/staleness", "learning_rate"))
    is_equal = lag == 0 or (lag is not None and rate is not None and lag * rate < STILL)
    return kl if is_equal else None
