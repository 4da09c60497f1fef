"""Settings of a run that cannot go together."""

from kit.config import RunConfig
from kit.objectives import Objective
from kit.reference import ReferenceStart
from kit.settings import Settings
from kit.sync import Schedule, WithSampler


def check_combination(
    config: RunConfig, objective: Objective, sync: Schedule, ref_sync: Schedule, ref_start: ReferenceStart
) -> None:
    """Raise ValueError for what would fail, or mean nothing, only after work was done."""
    sampling, max_age = config.sampling, config.max_age
    if sampling.temperature == 0:
        raise ValueError("expected a training temperature above 0, came 0: greedy groups are all equal")
    if sampling.top_p < 1 and (objective.needs_old_logprobs or sync.needs_drift):
        raise ValueError(f"expected top_p = 1, came {sampling.top_p}: ratios to the policy would be wrong")
    if isinstance(sync, WithSampler):
        raise ValueError("expected a schedule for the sampler, came WithSampler(): that is one for the reference")
    if ref_sync.needs_drift:
        raise ValueError(f"expected ref_sync to be a schedule of steps, came {ref_sync}: drift is from the sampler")
    if ref_start == "base" and not (config.lora and objective.needs_reference):
        lacking = "an adapter (RunConfig.lora)" if config.lora is None else "a reference in the objective"
        raise ValueError(f'expected ref_start="policy", came "base", which means nothing without {lacking}')
    longest = config.max_steps - 1
    if sync.max_staleness is not None:
        longest = min(longest, sync.max_staleness)
    if max_age is not None and max_age < longest:
        raise ValueError(
            f"expected max_age >= {longest}, the largest staleness under {sync}, came {max_age}: each older batch "
            "would be dropped, and the policy would stand still. Sync more often, or OnDrift(..., max_interval=...)"
        )


def check_settings(settings: Settings, *, original: Settings, ref_sync: Schedule, ref_start: ReferenceStart) -> None:
    """Raise ValueError for settings that a run which started with the original ones cannot have."""
    check_combination(settings.config, settings.objective, settings.sync, ref_sync, ref_start)
    if settings.objective.needs_reference and not original.objective.needs_reference:
        raise ValueError(
            "expected settings that need no reference, because this run started without one and has kept none, came "
            f"{settings.objective}: start a run with it"
        )
