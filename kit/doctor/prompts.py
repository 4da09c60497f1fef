"""Do prompts and chat template belong together?"""

from collections.abc import Iterator

from kit.doctor.finding import Finding
from kit.doctor.parts import Parts
from kit.printable import excerpt

MOST = 1000  # prompts looked at: a data set has one form, and tokenizing all of a large one takes minutes


def form(parts: Parts) -> Iterator[Finding]:
    """`string_prompts` (warning): a prompt is a plain string although the tokenizer has a chat template, and holds none
    of the special tokens, which a prompt that somebody rendered beforehand would hold. `messages_without_template`
    (error): a prompt is messages, and there is no chat template.

    A warning, because a base model may carry a template that it was not trained on.

    Source: CoursIA PR#11304 (TRL applies the template to messages only: no end token, all truncated, reward 0),
    trl#3126.
    """
    if parts.tokenizer is None or not parts.prompts:
        return
    some = parts.prompts[:MOST]
    if parts.tokenizer.chat_template:
        special = parts.tokenizer.all_special_tokens
        plain = [p for p in some if isinstance(p.content, str) and not any(token in p.content for token in special)]
        if plain:
            yield Finding(
                "string_prompts",
                "warning",
                f"{len(plain)} of {len(some)} prompts are plain strings, such as {excerpt(str(plain[0].content))}, and "
                "the tokenizer has a chat template, which is applied to messages only",
                "give messages, [{'role': 'user', 'content': ...}]; strings are right for a model that was not trained "
                "on its template",
            )
        return
    chats = [prompt for prompt in some if not isinstance(prompt.content, str)]
    if chats:
        yield Finding(
            "messages_without_template",
            "error",
            f"{len(chats)} of {len(some)} prompts are messages, and the tokenizer has no chat template",
            "set tokenizer.chat_template to the one that the model was trained with, or give plain strings",
        )


def doubled_start(parts: Parts) -> Iterator[Finding]:
    """`doubled_start` (warning): a string prompt starts with the start token, and the tokenizer adds another.

    Source: a prompt rendered beforehand with a template that writes the start token, tokenized as plain text.
    """
    if parts.tokenizer is None or not (start := parts.tokenizer.bos_token):
        return
    plain = [p.content for p in parts.prompts[:MOST] if isinstance(p.content, str) and p.content.startswith(str(start))]
    if plain and list(parts.tokenizer(plain[0])["input_ids"])[:2] == [parts.tokenizer.bos_token_id] * 2:
        yield Finding(
            "doubled_start",
            "warning",
            f"{len(plain)} prompts start with {excerpt(str(start))}, and the tokenizer adds one more",
            "give messages, or strings without the start token",
        )
