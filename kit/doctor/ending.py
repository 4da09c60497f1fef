"""Can a completion end, and where the model was taught to end it?"""

from collections.abc import Iterator

from jinja2 import TemplateError

from kit.doctor.finding import Finding
from kit.doctor.parts import Parts
from kit.printable import excerpt

ANSWER = "Yes, it is so."  # arbitrary
CONVERSATION = [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": ANSWER}]


def end_token(parts: Parts) -> Iterator[Finding]:
    """`no_end_token` (error): neither generation settings nor tokenizer name an end token.

    Source: CoursIA PR#11304 (no end token: every completion truncated, every reward 0).
    """
    if parts.tokenizer is not None and not parts.end_tokens:
        yield Finding(
            "no_end_token",
            "error",
            "neither the generation settings nor the tokenizer name an end-of-sequence token",
            "set tokenizer.eos_token to the token that the model was trained to end with",
        )


def end_of_turn(parts: Parts) -> Iterator[Finding]:
    """`other_end_token` (error): the chat template writes tokens after what the assistant said, and none of them is an
    end token. The model was taught to end its turn with one that does not stop the sampler.
    `broken_template` (error): the template does not render a user's message and an answer.

    Source: models whose tokenizer ends documents with one token and turns with another (`<|endoftext|>`, `<|im_end|>`);
    as trl#3126.
    """
    tokenizer = parts.tokenizer
    if tokenizer is None or not tokenizer.chat_template or not parts.end_tokens:
        return
    try:
        text = str(tokenizer.apply_chat_template(CONVERSATION, tokenize=False))
    except TemplateError as error:
        yield Finding(
            "broken_template",
            "error",
            f"the chat template does not render a user's and an assistant's message: {type(error).__name__}: {error}",
            "set tokenizer.chat_template to the one that the model was trained with",
        )
        return
    _, found, tail = text.rpartition(ANSWER)
    ids = list(tokenizer(tail, add_special_tokens=False)["input_ids"]) if found and tail.strip() else []
    if ids and not set(ids) & set(parts.end_tokens):
        ends = ", ".join(excerpt(str(tokenizer.convert_ids_to_tokens(i))) for i in parts.end_tokens)
        yield Finding(
            "other_end_token",
            "error",
            f"the chat template ends a turn with {excerpt(tail)}, and completions end only at {ends}",
            "put the token that ends a turn into eos_token_id of generation_config.json, as one of a list",
        )


def padding(parts: Parts) -> Iterator[Finding]:
    """`no_padding_token` (note): the tokenizer has none; the kit then pads with the end token, which is always masked.

    Source: other trainers mask the end token along with the padding, and the model unlearns to end.
    """
    if parts.tokenizer is not None and parts.tokenizer.pad_token_id is None:
        yield Finding(
            "no_padding_token",
            "note",
            "the tokenizer has no padding token",
            "nothing to do here: padding is masked. For other trainers set one that is not the end token",
        )
