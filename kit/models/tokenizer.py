"""The embedded models' tokenizer: bytes, a few markers, and a chosen list of whole words.

A byte-level alphabet means that any text encodes and decodes back, so no prompt can be refused; every digit is a token
of its own, so a number is spelled out the way one computes it.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import Unigram
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
        words: ASCII strings that become one token each; they may hold spaces and overlap. A digit inside a word is an
            error, because digits stay apart.

    Raises:
        ValueError: if a word contains a digit or a character outside printable ASCII.

    >>> tokenizer = build_tokenizer(["boxed"])
    >>> tokenizer.tokenize("boxed 42")
    ['boxed', 'Ġ', '4', '2']
    """
    pieces = [PAD, END, *ROLES, *sorted(ByteLevel.alphabet())]
    for word in words:
        if not word.isprintable() or not word.isascii() or any(c.isdigit() for c in word):
            raise ValueError(f"a vocabulary word must be printable ASCII without digits, got {word!r}")
        spelled = word.replace(" ", "Ġ")  # the byte-level alphabet writes a space so
        if spelled not in pieces:  # a word of one letter is there already
            pieces.append(spelled)
    # The segmentation with the highest sum of scores: with equal scores, the one with the fewest tokens.
    # No regular-expression split before it: a word may then hold punctuation, such as the opening of a box.
    backend = Tokenizer(Unigram([(piece, -1.0) for piece in pieces]))
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
    return tokenizer
