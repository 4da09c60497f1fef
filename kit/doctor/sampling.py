"""Are completions drawn from the policy's whole distribution?"""

from collections.abc import Iterator

from kit.doctor.finding import Finding
from kit.doctor.parts import Parts

# Settings of a generation config and the value that leaves the distribution as it is; None always does.
NEUTRAL: dict[str, tuple[float, ...]] = {
    "temperature": (1.0,), "top_p": (1.0,), "top_k": (0, -1), "min_p": (0.0,), "typical_p": (1.0,),
    "repetition_penalty": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "no_repeat_ngram_size": (0,),
}  # fmt: skip


def cut_distribution(parts: Parts) -> Iterator[Finding]:
    """`ratios_of_a_cut_distribution` (error): top_p is below 1 while the objective weighs by the ratio of policy to
    sampler, or the schedule measures their distance. The sampler's log-probs are those of the renormalised rest, so
    that every ratio is too small. (Top-k is off in the kit, always.)

    Source: trl#6789 (open), vllm#42259; trl PR#7269 measured a mean ratio of 0.896 at top_p 0.8.
    """
    if parts.config is None or parts.config.sampling.top_p == 1:
        return
    users = [] if parts.objective is None or not parts.objective.needs_old_logprobs else ["the objective"]
    users += ["the sync schedule"] if parts.sync is not None and parts.sync.needs_drift else []
    if users:
        yield Finding(
            "ratios_of_a_cut_distribution",
            "error",
            f"top_p is {parts.config.sampling.top_p:g}, and {' and '.join(users)} compares policy and sampler",
            "set top_p to 1, or take an objective without ratios: GRPO(importance=NoCorrection()), DPO()",
        )


def generation_defaults(parts: Parts) -> Iterator[Finding]:
    """`sampling_defaults` (note): the model's generation settings change the distribution that is drawn from, such as
    temperature 0.6, or top_k 50. The kit's samplers do not read them; `generate` and vLLM's own defaults do.

    Source: trl#4159 (a temperature that the trainer does not apply), trl#6789 (top-p, top-k, min-p).
    """
    if parts.generation_config is None:
        return
    settings = parts.generation_config.to_dict()
    odd = [f"{n}={settings[n]:g}" for n, neutral in NEUTRAL.items() if settings.get(n) not in (None, *neutral)]
    if odd:
        yield Finding(
            "sampling_defaults",
            "note",
            f"generation_config.json has {', '.join(odd)}",
            "nothing to do here: the kit samples as RunConfig.sampling says. Elsewhere set temperature=1, top_p=1, "
            "top_k=0",
        )
