"""Which knob to turn when a run does not fit, with the peak that would follow."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from kit.config import Lora
from kit.memory.estimate import Advice
from kit.memory.plan import Plan

Knob = Callable[[Plan], Plan | None]  # the plan with the knob turned; None = it cannot be turned
SAVES = 0.99  # a knob that leaves more than this of the peak is not worth a line


def advise(plan: Plan) -> tuple[Advice, ...]:
    """Each knob alone, best first, less those that save nothing; before them several together, if none suffices."""
    singly = [turned for knob in KNOBS if (turned := _useful(knob, plan))]
    found = sorted((_advice(plan, turned) for turned in singly), key=lambda advice: advice.peak)
    together = [] if any(advice.fits for advice in found) else [_advice(plan, _together(plan))]
    return (*together, *found)


def _together(plan: Plan) -> Plan:
    """Knob after knob, those first that change results least, until it fits; then back what was not needed."""
    start = plan
    while not plan.estimate.fits:
        turned = next((turned for knob in KNOBS if (turned := _useful(knob, plan))), None)
        if turned is None:
            return plan
        plan = turned
    for name in ("optim", "gradient_checkpointing", "quantization"):
        before = replace(plan, config=replace(plan.config, **{name: getattr(start.config, name)}))
        plan = before if before.estimate.fits else plan
    return plan


def _useful(knob: Knob, plan: Plan) -> Plan | None:
    turned = knob(plan)
    return turned if turned and turned.estimate.peak.total < SAVES * plan.estimate.peak.total else None


def _advice(before: Plan, after: Plan) -> Advice:
    """What differs between the two plans, by name."""
    changes: dict[str, Any] = {}
    pairs = [(before.config, after.config), (before.config.sampling, after.config.sampling)]
    for old, new in [*pairs, *([(before.vllm, after.vllm)] if before.vllm and after.vllm else [])]:
        names = [field.name for field in fields(new) if field.name != "sampling"]
        changes |= {name: getattr(new, name) for name in names if getattr(new, name) != getattr(old, name)}
    written = ", ".join(f"{name}={'Lora()' if value == Lora() else repr(value)}" for name, value in changes.items())
    peak = after.estimate.peak.total
    return Advice(written or "a smaller model: no setting saves memory", peak, bool(after.estimate.fits))


def _switch(name: str, value: object, makes_sense: Callable[[Plan], bool]) -> Knob:
    def knob(plan: Plan) -> Plan | None:
        is_new = makes_sense(plan) and getattr(plan.config, name) != value
        return replace(plan, config=replace(plan.config, **{name: value})) if is_new else None

    return knob


def _halving(name: str, least: int = 1) -> Knob:
    """The number halved until it fits, or until less of it saves no more: then something else is at its peak."""

    def knob(plan: Plan) -> Plan | None:
        in_sampling = name == "max_completion_length"
        now = getattr(plan.config.sampling if in_sampling else plan.config, name)
        plans = []
        for value in (now >> shift for shift in range(1, now.bit_length()) if now >> shift >= least):
            changes = {"sampling": replace(plan.config.sampling, **{name: value})} if in_sampling else {name: value}
            plans.append(replace(plan, config=replace(plan.config, **changes)))
        if not plans:
            return None
        goal = max(plans[-1].estimate.peak.total / SAVES, plan.total_bytes or 0)
        return plans[bisect_left(plans, True, hi=len(plans) - 1, key=lambda p: p.estimate.peak.total <= goal)]

    return knob


def _quantized(plan: Plan) -> Plan | None:
    if plan.config.quantization == "nf4":
        return None
    return replace(plan, config=replace(plan.config, lora=plan.config.lora or Lora(), quantization="nf4"))


def _smaller_share(plan: Plan) -> Plan | None:
    """vLLM's share as what the rest leaves, in hundredths, as long as it holds a sequence."""
    if plan.vllm is None or plan.total_bytes is None:
        return None
    excess = max(plan.estimate.peak.total - plan.total_bytes, 1)
    share = round(100 * plan.vllm.gpu_memory_utilization) + -100 * excess // plan.total_bytes
    if share < 1:
        return None
    turned = replace(plan, vllm=replace(plan.vllm, gpu_memory_utilization=share / 100))
    return turned if turned.estimate.concurrent_sequences else None


def _asleep(plan: Plan) -> Plan | None:
    return replace(plan, vllm=replace(plan.vllm, sleeps=True)) if plan.vllm and not plan.vllm.sleeps else None


def _in_batches(plan: Plan) -> Plan | None:
    """As many completions at a time as fit, in halves of a step's, down to one group."""
    config = plan.config
    if plan.vllm or config.generation_batch_size is not None:
        return None
    start = replace(plan, config=replace(config, generation_batch_size=config.prompts_per_step * config.group_size))
    return _halving("generation_batch_size", least=config.group_size)(start)


KNOBS: tuple[Knob, ...] = (
    _halving("micro_batch_size"),
    _in_batches,
    _asleep,
    _smaller_share,
    _halving("eval_prompts"),
    _switch("gradient_checkpointing", True, lambda plan: True),
    _switch("optim", "adamw_bnb_8bit", lambda plan: True),
    _switch("bf16", True, lambda plan: not plan.is_on_cpu),
    _switch("lora", Lora(), lambda plan: plan.config.lora is None),
    _quantized,
    _halving("prompts_per_step"),
    _halving("max_completion_length", least=16),
)
