"""The embedded models' tokenizer: bytes, a few markers, and a chosen list of whole words.

A byte-level alphabet means that any text encodes and decodes back, so no prompt can be refused; every digit is a token
of its own, so a number is spelled out the way one computes it.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
PAD_ID, END_ID = 0, 1
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that also knows `words`, each as a single token.

    Args:
        words: ASCII strings that become one token each. A digit inside a word is an error, because digits stay apart.

    Raises:
        ValueError: if a word contains a digit or a character outside printable ASCII.

    >>> tokenizer = build_tokenizer(["boxed"])
    >>> tokenizer.tokenize("boxed 42")
    ['boxed', 'Ġ', '4', '2']
    """
    markers = [PAD, END, *ROLES]
    vocabulary = {token: index for index, token in enumerate([*markers, *sorted(ByteLevel.alphabet())])}
    merges: list[tuple[str, str]] = []
    for word in words:
        if not word.isprintable() or not word.isascii() or any(c.isdigit() for c in word):
            raise ValueError(f"a vocabulary word must be printable ASCII without digits, got {word!r}")
        spelled = word.replace(" ", "Ġ")  # the byte-level alphabet writes a space so
        for end in range(2, len(spelled) + 1):
            if spelled[:end] not in vocabulary:
                merges.append((spelled[: end - 1], spelled[end - 1]))
                vocabulary[spelled[:end]] = len(vocabulary)
    # No regular-expression split before the merges: a word may then hold punctuation, such as the opening of a box.
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    backend.decoder = ByteLevelDecoder()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    for word in words:
        if len(tokenizer.tokenize(word)) != 1:  # an earlier word's merges took it apart
            raise ValueError(
                f"expected words that can each be one token, came {word!r} after one inside it: reorder them"
            )
    return tokenizer
