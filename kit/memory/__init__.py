"""How much memory a run needs, before anything is loaded: from the model's config.json and the run's configuration.

What a run holds changes from moment to moment of a step, and its peak is that of the worst moment:

    generate       keys and values of all completions
    evaluate       the same for the held-out prompts
    sync           differences of old and new weights
    output layer   activations, and logits a chunk at a time
    backward       activations, and what flows back through them
    optimizer      its moments, updated
"""

from dataclasses import replace
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from kit.config import RunConfig
from kit.memory.advice import advise
from kit.memory.estimate import GB, Advice, Estimate, Moment
from kit.memory.plan import Plan, Vllm
from kit.models.policy import ROOT
from kit.objectives import Objective

__all__ = ["GB", "Advice", "Estimate", "Moment", "Plan", "Vllm", "estimate", "load_model_config"]

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


def load_model_config(model_name_or_path: str) -> PreTrainedConfig:
    """A model's config.json, from a folder or, if a network is there, from the hub; nothing else is read.

    Raises:
        FileNotFoundError: if it cannot be had.
        ValueError: if it lacks a size.
    """
    folders = [f for f in (Path(model_name_or_path), ROOT / model_name_or_path) if (f / "config.json").is_file()]
    name = str(folders[0]) if folders else model_name_or_path
    try:
        raw, _ = PreTrainedConfig.get_config_dict(name)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except OSError as error:
        raise FileNotFoundError(
            f"expected a folder with a config.json, or a model on the hub that can be read, came {name!r}: it is "
            "absent or gated, or there is no network. Download it once with an account that has access, and give its "
            "folder"
        ) from error
    missing = [size for size in SIZES if config.attribute_map.get(size, size) not in raw]
    if missing:
        raise ValueError(
            f"expected a config.json of a causal language model with {', '.join(SIZES)}, came that of {name!r} without "
            f"{', '.join(missing)}: complete it, since a default would describe another model"
        )
    return config


def estimate(
    config: RunConfig, objective: Objective, *, prompt_length: int, total_bytes: int | None = None,
    vllm: Vllm | None = None, model_config: PreTrainedConfig | None = None,
) -> Estimate:  # fmt: skip
    """Memory of a run on one device, by moment and part, and what to change if it does not fit.

    Args:
        config: of the run; its `model_name_or_path` needs no more than a config.json.
        objective: tells whether there is a reference, and how many of a group's completions are trained on.
        prompt_length: tokens of the longest prompts, >= 1.
        total_bytes: memory of the device, > 0; None = unknown.
        vllm: how vLLM shares the device; None = the transformers sampler.
        model_config: instead of that of `model_name_or_path`.

    Raises:
        FileNotFoundError, ValueError: for a model that cannot be found or trained, or a number out of range.
    """
    if prompt_length < 1:
        raise ValueError(f"expected prompt_length >= 1 token, came {prompt_length}")
    if total_bytes is not None and total_bytes <= 0:
        raise ValueError(f"expected total_bytes above 0, came {total_bytes}: give the device's memory in bytes")
    if vllm and total_bytes is None:
        raise ValueError("expected total_bytes with vllm, which takes a share of it, came None")
    objective.check(config.group_size)
    found = load_model_config(config.model_name_or_path) if model_config is None else model_config
    context, needed = getattr(found, "max_position_embeddings", None), config.sampling.max_completion_length
    if context and prompt_length + needed > context:
        raise ValueError(
            f"expected prompt_length + max_completion_length <= {context}, the model's context, came {prompt_length} + "
            f"{needed}: lower one"
        )
    plan = Plan(config, objective, prompt_length, total_bytes, vllm, found)
    return replace(plan.estimate, advice=advise(plan)) if plan.estimate.fits is False else plan.estimate
