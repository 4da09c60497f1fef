"""A receipt passes only if the weights arrived and the sampler computes with them."""

import pickle
from dataclasses import replace

import pytest

from kit.samplers import Receipt, SyncError

GOOD = Receipt(
    step=20, version=20, tensors=12, delta_norm=0.5, digest="aa", sampler_digest="aa", probe_parity=0.0,
    probe_moved=0.01, prefix_cache_reset=True, seconds=0.1, bytes=48,
)  # fmt: skip


@pytest.mark.parametrize(
    "receipt",
    [
        GOOD,
        replace(GOOD, probe_parity=1e-4),  # the tolerance itself
        replace(GOOD, probe_parity=0.04, probe_tolerance=0.05),
        replace(GOOD, delta_norm=0.0, probe_moved=0.0),  # nothing to move
        replace(GOOD, delta_norm=1e-3, probe_moved=0.0),  # too small a step to show
    ],
)
def test_a_good_receipt_passes(receipt: Receipt) -> None:
    receipt.check()


@pytest.mark.parametrize(
    ("receipt", "reason"),
    [
        (replace(GOOD, sampler_digest="bb"), "the policy's weights hash to aa, the sampler's to bb"),
        (replace(GOOD, probe_parity=1.1e-4), r"differ by 1\.10e-04 nats, allowed are 1e-04"),
        (replace(GOOD, probe_parity=0.06, probe_tolerance=0.05), r"differ by 6\.00e-02 nats, allowed are 5e-02"),
        (replace(GOOD, prefix_cache_reset=False), "keys and values that the old weights computed were still in use"),
        (replace(GOOD, probe_parity=float("nan")), "differ by nan nats"),
        (replace(GOOD, probe_parity=float("inf")), "differ by inf nats"),
        (
            replace(GOOD, probe_moved=0.0),
            r"moved by 5\.00e-01, yet the sampler's log-probs on the probe did not change",
        ),
    ],
)
def test_a_failed_receipt_says_where_and_why(receipt: Receipt, reason: str) -> None:
    with pytest.raises(SyncError, match=rf"sync before step 20 \(version 20\) did not reach the sampler: .*{reason}"):
        receipt.check()


def test_an_error_of_a_sampler_in_another_process_arrives_whole() -> None:
    with pytest.raises(SyncError) as caught:
        replace(GOOD, sampler_digest="bb").check()
    arrived = pickle.loads(pickle.dumps(caught.value))
    assert (str(arrived), arrived.receipt) == (str(caught.value), caught.value.receipt)
