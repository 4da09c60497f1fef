"""Does a reward model read conversations in the form that it was trained on?"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from kit.doctor.ending import CONVERSATION
from kit.doctor.finding import Finding
from kit.doctor.parts import Parts
from kit.printable import excerpt
from kit.rewards.combine import function_name

if TYPE_CHECKING:
    from kit.models.reward_model import RewardModel


def template(parts: Parts) -> Iterator[Finding]:
    """Of each reward function that is a `RewardModel`, against the prompts and the policy's tokenizer:

    `reward_model_template_missing` (error): prompts are messages, and its tokenizer has no chat template.
    `reward_model_template_broken` (error): its template cannot render the first prompt of messages and an answer.
    `reward_model_template_foreign` (error): its template writes what is a special token of the policy's tokenizer and
    no single token of its own: it was copied from the policy, and is read as text.
    `reward_model_template_differs` (warning): both tokenizers have the same vocabulary and unlike templates.
    `reward_model_reads_text` (warning): prompts are strings, so it reads plain text, and its tokenizer has a template.

    A model of another family has a template of its own, and that is right. Where it differs, nothing can be said.

    Source: trl PR#2276, reward-bench#115 (scores with the wrong template are wrong without any sign of it).
    """
    from kit.models.reward_model import RewardModel  # whoever only reads a run need not wait for transformers

    for function in parts.functions:
        while isinstance(function, partial):
            function = function.func
        if isinstance(function, RewardModel) and parts.prompts:
            yield from _of(function, function_name(function), parts)


def _of(judge: "RewardModel", name: str, parts: Parts) -> Iterator[Finding]:
    own, chats = judge.tokenizer, [prompt.content for prompt in parts.prompts if not isinstance(prompt.content, str)]
    take = "set reward_model.tokenizer.chat_template to the one that it was trained with"
    if not own.chat_template:
        if chats:
            seen = f"{len(chats)} prompts are messages, and the tokenizer of {name} has no chat template"
            yield Finding("reward_model_template_missing", "error", seen, take, about=name)
        return
    if len(chats) < len(parts.prompts):
        seen = f"{len(parts.prompts) - len(chats)} prompts are strings, which {name} reads as text; it has a template"
        remedy = "give messages, if it was trained on conversations"
        yield Finding("reward_model_reads_text", "warning", seen, remedy, about=name)
    if not chats:
        return
    try:
        text = str(own.apply_chat_template([*chats[0], CONVERSATION[1]], tokenize=False))
    except TemplateError as error:
        seen = f"its template does not render the first prompt: {type(error).__name__}: {error}"
        yield Finding(
            "reward_model_template_broken", "error", seen, f"{take}; see that prompts use its roles", about=name
        )
        return
    policy = parts.tokenizer
    if policy is None:
        return
    known = own.get_vocab()
    foreign = [token for token in policy.all_special_tokens if token in text and token not in known]
    if foreign:
        seen = f"its template writes {', '.join(map(excerpt, foreign))}, special to the policy's tokenizer alone"
        yield Finding("reward_model_template_foreign", "error", seen, take, about=name)
    elif policy.chat_template and known == policy.get_vocab() and own.chat_template != policy.chat_template:
        theirs = str(policy.apply_chat_template([*chats[0], CONVERSATION[1]], tokenize=False))
        if theirs != text:
            seen = f"with one vocabulary, it reads {excerpt(text)} where the policy writes {excerpt(theirs)}"
            yield Finding("reward_model_template_differs", "warning", seen, f"if that is not meant, {take}", about=name)
