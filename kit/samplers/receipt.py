"""The proof that a sync delivered the policy's weights to the sampler."""

from dataclasses import dataclass

PROBE_TOLERANCE = 1e-4  # nats per token; same engine and precision on both sides


class SyncError(RuntimeError):
    """The sampler does not hold the weights that it was sent; `receipt` says what was found."""

    def __init__(self, message: str, receipt: "Receipt") -> None:
        super().__init__(message)
        self.receipt = receipt

    def __reduce__(self) -> "tuple[type[SyncError], tuple[str, Receipt]]":
        return SyncError, (str(self), self.receipt)  # so that it can come from another process


@dataclass(frozen=True)
class Receipt:
    """What one sync did, as it is logged in `receipts.jsonl`.

    Attributes:
        step: optimizer step before which it happened.
        version: optimizer updates in the weights the sampler now holds.
        tensors: how many tensors were copied.
        delta_norm: 2-norm of the change of the sampler's weights.
        digest: hash of the policy's weights on the trainer's side.
        sampler_digest: the same hash, taken of what arrived.
        probe_parity: largest difference of policy's and sampler's log-probs on a fixed probe, nats.
        probe_moved: largest change of the sampler's log-probs on that probe through this sync, nats.
        prefix_cache_reset: whether cached keys and values of the old weights were dropped.
        seconds: wall-clock time.
        bytes: of the weights that were sent; where there are several samplers, to all of them.
        probe_tolerance: largest `probe_parity` that passes: another engine or precision rounds differently.
        differing: up to five tensors that did not arrive as they were sent.
        samplers: where there are several, each one's receipt; this one is then the worst of them.
    """

    step: int
    version: int
    tensors: int
    delta_norm: float
    digest: str
    sampler_digest: str
    probe_parity: float
    probe_moved: float
    prefix_cache_reset: bool
    seconds: float
    bytes: int
    probe_tolerance: float = PROBE_TOLERANCE
    differing: tuple[str, ...] = ()
    samplers: "tuple[Receipt, ...]" = ()

    def check(self) -> None:
        """Raises SyncError unless the weights arrived and the sampler computes with them."""
        if self.digest != self.sampler_digest:
            problem = f"the policy's weights hash to {self.digest}, the sampler's to {self.sampler_digest}"
            if self.differing:
                problem += f" (these tensors differ: {', '.join(self.differing)})"
        elif not self.prefix_cache_reset:
            problem = "keys and values that the old weights computed were still in use after it"
        elif not self.probe_parity <= self.probe_tolerance:  # also true of NaN
            problem = (
                f"log-probs on the probe differ by {self.probe_parity:.2e} nats, allowed are {self.probe_tolerance:.0e}"
            )
        elif self.delta_norm > 1e-3 and self.probe_moved == 0.0:
            problem = (
                f"the weights moved by {self.delta_norm:.2e}, yet the sampler's log-probs on the probe did not change"
            )
        else:
            return
        raise SyncError(
            f"sync before step {self.step} (version {self.version}) did not reach the sampler: {problem}. The run "
            "stopped, because rollouts of the wrong policy look like staleness. The receipts are in receipts.jsonl.",
            self,
        )
