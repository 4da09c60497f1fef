"""What every sampler does before and after its engine: prompts to tokens, tokens to groups."""

import hashlib
from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kit.config import Sampling
from kit.types import Group, Prompt, Rollout

CHANGING_ROPES = ("longrope", "dynamic")  # rotary embeddings whose frequencies depend on the sequence's length


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of a prompt: chat messages through the chat template, a plain string as it is.

    Raises:
        ValueError: for messages where the tokenizer has no chat template, or has one that refuses them.
    """
    if isinstance(prompt.content, str):
        return list(tokenizer(prompt.content)["input_ids"])
    if tokenizer.chat_template is None:
        raise ValueError(
            f"prompt {prompt.id!r} is chat messages, and the tokenizer of {tokenizer.name_or_path!r} has no chat "
            "template: take the model's chat version, set tokenizer.chat_template and save it, or pass plain strings"
        )
    try:
        text = tokenizer.apply_chat_template(prompt.content, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        roles = [message.get("role") for message in prompt.content]
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path!r} refuses prompt {prompt.id!r} with messages of the roles "
            f"{roles}: {error}. Give prompts in roles that the model knows"
        ) from error
    return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])  # the template wrote its own


def context_length(model: PreTrainedModel) -> int:
    """Tokens that the model reads as it was trained to.

    Phi-3's and others' "longrope" (and "dynamic") embed *all* positions anew once a sequence passes the length of the
    first training: a token's log-prob then depends on what is read along with it, so that is the limit here.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    of_kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]  # some have one a kind of layer
    changing = [of_kind for of_kind in of_kinds if of_kind.get("rope_type") in CHANGING_ROPES]
    limits = [of_kind.get("original_max_position_embeddings") for of_kind in changing]
    return min([config.max_position_embeddings, *(limit for limit in limits if limit)])


def require_fit(
    tokenizer: PreTrainedTokenizerBase, context: int, prompts: Sequence[Prompt], sampling: Sampling
) -> None:
    """Raises ValueError if a prompt is empty, or does not fit the model's context with a full-length completion."""
    lengths = [len(prompt_ids(tokenizer, prompt)) for prompt in prompts]
    if not all(lengths):
        raise ValueError(f"expected prompts with tokens, came {prompts[lengths.index(0)].id!r} without any: drop it")
    length, longest = max(zip(lengths, prompts, strict=True), key=lambda pair: pair[0])
    if length + sampling.max_completion_length > context:
        raise ValueError(
            f"prompt {longest.id!r} of {length} tokens and max_completion_length={sampling.max_completion_length} "
            f"must fit into the model's context of {context} tokens: shorten the prompt or lower the limit"
        )


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a completion: those of the model's generation settings, else the tokenizer's."""
    config = model.generation_config
    ends = tokenizer.eos_token_id if config is None or config.eos_token_id is None else config.eos_token_id
    return tuple(ends) if isinstance(ends, list) else (ends,)  # pyright: ignore[reportReturnType] - ids, not tokens


def seed_of(seed: tuple[int, ...], prompt: Prompt) -> int:
    """63 bits from a hash of the seed and the prompt's id, never from Python's own `hash`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt.id}".encode()).digest()[:8], "big") >> 1


def groups_of(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], group_size: int, ids: Sequence[Sequence[int]],
    tokens: list[list[int]], logprobs: Sequence[Sequence[float]], entropies: Sequence[Sequence[float]],
    *, ends: tuple[int, ...], version: int,
) -> list[Group]:  # fmt: skip
    """Groups from what an engine drew: `ids` one row a prompt, the others one row a completion.

    `entropies` may be without rows: the engine does not know them.
    """
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    rollouts = [
        Rollout(
            prompt_ids=tuple(ids[row // group_size]),
            completion_ids=tuple(drawn),
            old_logprobs=tuple(logprobs[row]),
            entropies=tuple(entropies[row]) if entropies else (),
            text=texts[row],
            finish_reason="stop" if drawn[-1] in ends else "length",
            version=version,
        )
        for row, drawn in enumerate(tokens)
    ]
    return [Group(prompt, tuple(rollouts[i * group_size : (i + 1) * group_size])) for i, prompt in enumerate(prompts)]
