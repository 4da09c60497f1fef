"""What a study will take, before it runs: time and memory of each run, and where each number comes from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from kit.config import Lora, RunConfig, Sampling
from kit.progress import duration
from kit.study.file import Study, StudyError, StudyRun
from kit.study.progress import read_state
from kit.study.record import FINISHED, read_record, record_path

if TYPE_CHECKING:
    from kit.timing import Hardware

PROMPT_LENGTH = 64  # tokens, assumed: prompts are not read here
ASSUMED = (
    f"Estimates, all of memory among them, assume prompts of {PROMPT_LENGTH} tokens, completions of full length, "
    "a signal in every group, and a machine with nothing else to do."
)
START_S = (5.0, 20.0)  # a kernel, its imports, a model and the notebook's figures


@dataclass(frozen=True)
class PlannedRun:
    """One line of the plan. `seconds` are low and high; None is unknown. `source` says what the time was taken from."""

    run: StudyRun
    state: str
    seconds: tuple[float, float] | None
    source: str
    peak_bytes: int | None

    def row(self) -> list[str]:
        left = "" if self.seconds is None else duration(self.seconds[0])
        if self.seconds and duration(self.seconds[1]) != left:
            left = f"{left} to {duration(self.seconds[1])}"
        memory = "" if self.peak_bytes is None else f"{self.peak_bytes / 1e9:.2g} GB"
        return [self.run.name, self.state, left or "unknown", self.source, memory or "unknown"]


def plan_study(study: Study) -> list[PlannedRun]:
    """Every run in its order.

    The time of a run that is finished is its own; of another, that of finished runs of the same arm if there are any;
    else it is estimated (`kit.timing`), if the notebook's parameters are those of a run. Memory is estimated.
    """
    records = {name: read_record(record_path(run)) for name, run in study.runs.items()}
    took = {name: record.seconds for name, record in records.items() if record and record.state == FINISHED}
    estimates: dict[str, tuple[tuple[float, float] | None, int | None]] = {}
    found = []
    for name, run in study.runs.items():
        if run.arm not in estimates:
            try:
                estimates[run.arm] = _estimate({**_defaults(study), **run.parameters})
            except ValueError as error:
                raise StudyError(f"{study.path}: arms.{run.arm}: {error}") from error
        seconds, peak = estimates[run.arm]
        of_arm = [took[other] for other, each in study.runs.items() if each.arm == run.arm and other in took]
        source = "estimated" if seconds else "no estimate"
        if name in took:
            seconds, source = (took[name], took[name]), "measured"
        elif of_arm:
            seconds, source = (min(of_arm), max(of_arm)), f"measured on {len(of_arm)} of this arm"
        record = records[name]
        state = record.state if record else "not started"
        if state not in (FINISHED, "not started") and str(read_state(run)):
            state += f", {read_state(run)}"
        found.append(PlannedRun(run, state, seconds, source, peak))
    return found


def plan_text(study: Study, workers: int = 1) -> str:
    """The plan as a table, and the sum."""
    planned = plan_study(study)
    rows = [["run", "state", "time", "from", "memory"], *(each.row() for each in planned)]
    left = [each for each in planned if each.state != FINISHED]
    known = [each.seconds for each in left if each.seconds]
    low, high = (sum(seconds[end] for seconds in known) / workers for end in (0, 1))
    total = f"{len(planned)} runs, {len(left)} to do"
    if left and known:
        total += f": {duration(low)} to {duration(high)} with {workers} at a time"
        total += f", {len(left) - len(known)} of unknown length apart" if len(known) < len(left) else ""
    is_estimated = any(each.source == "estimated" or each.peak_bytes is not None for each in planned)
    return "\n".join([*table(rows), "", total, *([ASSUMED] if is_estimated else ())])


def table(rows: list[list[str]]) -> Iterator[str]:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _defaults(study: Study) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in study.declared.items()}


def _estimate(knobs: Mapping[str, Any]) -> tuple[tuple[float, float] | None, int | None]:
    """Seconds, low and high, and bytes at the peak; None if the notebook is not one run, or its model is not here."""
    if not {"model_name_or_path", "max_steps", "prompts_per_step", "group_size"} <= knobs.keys():
        return None, None
    from kit.memory import Vllm, estimate, load_model_config
    from kit.memory.plan import Plan
    from kit.objectives import GRPO, OBJECTIVES
    from kit.timing import step_time

    config = _config(knobs)
    constructor = OBJECTIVES[knobs.get("objective", "dpo")]
    constants = {"kl_coef": knobs["kl_coef"]} if knobs.get("kl_coef") and constructor is GRPO else {}
    objective = constructor(**constants)  # the rest of its constants needs neither time nor memory
    try:
        model_config = load_model_config(config.model_name_or_path)
    except (FileNotFoundError, ValueError):  # a policy that is not made yet; a name on the hub, without a network
        return None, None
    hardware = _hardware(config.device)
    if hardware is None:
        return None, None
    context = getattr(model_config, "max_position_embeddings", None) or PROMPT_LENGTH * 1000
    prompt_length = max(1, min(PROMPT_LENGTH, context - config.sampling.max_completion_length))
    vllm = Vllm(knobs.get("gpu_memory_utilization", 0.4)) if knobs.get("sampler") == "vllm" else None
    plan = Plan(config, objective, prompt_length, hardware.total_bytes, vllm, model_config)
    held_out = replace(config, prompts_per_step=config.eval_prompts, group_size=config.eval_samples)
    step, evaluation = step_time(plan, hardware), step_time(replace(plan, config=held_out), hardware)
    evaluations = config.max_steps // config.eval_steps + 1
    low, high = (START_S[end] + config.max_steps * step.total[end] + evaluations * evaluation.generate[end]
                 for end in (0, 1))  # fmt: skip
    memory = estimate(config, objective, prompt_length=prompt_length, total_bytes=hardware.total_bytes, vllm=vllm,
                      model_config=model_config)  # fmt: skip
    return (low, high), memory.peak.total


@cache
def _hardware(device: str) -> "Hardware | None":
    """None if this machine does not have the device."""
    from kit.timing import measured_hardware

    try:
        return measured_hardware(device)
    except (RuntimeError, AssertionError):  # torch's, where there is no such device, or no driver
        return None


def _config(knobs: Mapping[str, Any]) -> RunConfig:
    """As the notebooks make it from their parameters."""
    sampling = Sampling(**{f.name: knobs[f.name] for f in fields(Sampling) if f.name in knobs})
    rank = knobs.get("lora_r")
    lora = None if rank is None else Lora(rank, knobs.get("lora_alpha", 32.0))
    given = {**knobs, "sampling": sampling, "lora": lora}
    return RunConfig(**{f.name: given[f.name] for f in fields(RunConfig) if f.name in given})
