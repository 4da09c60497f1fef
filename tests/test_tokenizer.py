"""Any text encodes and decodes back, every digit is a token of its own, and ids never change."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kit.models.tokenizer import build_tokenizer

WORDS = (r"\boxed{", "the capital of", "is")
TOKENIZER = build_tokenizer(WORDS)
MARKERS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
ANY_TEXT = st.text() | st.lists(st.sampled_from([*WORDS, *MARKERS, " ", "\n", "7", "é", "🙂", "\x00"])).map("".join)
quick = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(ANY_TEXT)
def test_any_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


@pytest.fixture(scope="session")
def embedded(seed_folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(seed_folder)


@quick
@given(text=ANY_TEXT)
def test_any_text_round_trips_through_the_embedded_tokenizer(embedded: PreTrainedTokenizerFast, text: str) -> None:
    assert embedded.decode(embedded(text)["input_ids"]) == text


@quick
@given(number=st.integers(min_value=0), before=st.sampled_from(["", " ", "+", r"\boxed{", "x"]))
def test_every_digit_is_a_token_of_its_own(embedded: PreTrainedTokenizerFast, number: int, before: str) -> None:
    for tokenizer in (TOKENIZER, embedded):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(f"{before}{number}")["input_ids"])
        assert tokens[len(tokens) - len(str(number)) :] == list(str(number))


def test_ids_of_bytes_are_their_rank_in_the_byte_level_alphabet() -> None:
    # GPT-2's alphabet: printable bytes stand for themselves, the n-th other byte is chr(256 + n). Markers come first.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    ranks = {character: rank for rank, character in enumerate(sorted(spelled.values()))}
    vocabulary = build_tokenizer().get_vocab()
    assert vocabulary == {marker: i for i, marker in enumerate(MARKERS)} | {c: 5 + rank for c, rank in ranks.items()}


def test_ids_of_a_prompt_by_hand() -> None:
    # "!" is the first printable byte, 0x21, and has id 5; so "0" (0x30) has 20, "+" (0x2B) 15 and "=" (0x3D) 33.
    messages = [{"role": "user", "content": "12+3="}]
    encoded = build_tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert encoded["input_ids"] == [3, 21, 22, 15, 23, 33, 1, 4]


def test_chat_template_by_hand() -> None:
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+2="},
        {"role": "assistant", "content": "3"},
    ]  # fmt: skip
    told = "<|system|>Be brief.<|end|><|user|>1+2=<|end|><|assistant|>3<|end|>"
    assert TOKENIZER.apply_chat_template(messages, tokenize=False) == told
    asked = TOKENIZER.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert asked == "<|system|>Be brief.<|end|><|user|>1+2=<|end|><|assistant|>"


def test_special_tokens_are_skipped_on_request() -> None:
    ids = TOKENIZER(r"<|assistant|>\boxed{4}<|end|>")["input_ids"]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == r"\boxed{4}"


def test_completions_can_end_and_be_padded() -> None:
    assert (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id, TOKENIZER.padding_side) == (1, 0, "left")


@pytest.mark.parametrize("word", WORDS)
def test_each_word_is_one_token(word: str) -> None:
    assert len(TOKENIZER(word)["input_ids"]) == 1


@pytest.mark.parametrize("words", [("at", "cat"), ("cat", "at"), ("bcd", "abc"), ("abc", "bcd")])
def test_words_that_overlap_are_one_token_each_or_refused(words: tuple[str, str]) -> None:
    try:
        tokenizer = build_tokenizer(words)
    except ValueError as refusal:
        assert any(word in str(refusal) for word in words)
        return
    assert [len(tokenizer(word)["input_ids"]) for word in words] == [1, 1]


@pytest.mark.parametrize("word", ["4", "x1", "é", "a\nb"])
def test_a_word_with_a_digit_or_beyond_ascii_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII without digits"):
        build_tokenizer([word])


def test_ids_do_not_change_with_the_hash_seed_of_the_process() -> None:
    program = (
        "from kit.models.tokenizer import build_tokenizer\n"
        f"print(build_tokenizer({WORDS!r}).backend_tokenizer.to_str())"
    )
    root = Path(__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(root), "PYTHONHASHSEED": "1", "PATH": ""},
    )  # fmt: skip
    assert found.stdout.strip() == TOKENIZER.backend_tokenizer.to_str()


def test_saving_and_loading_keeps_ids_and_template(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    messages = [{"role": "user", "content": "what is the capital of x?"}]
    ids = [t.apply_chat_template(messages, add_generation_prompt=True, return_dict=True) for t in (loaded, TOKENIZER)]
    assert ids[0]["input_ids"] == ids[1]["input_ids"]
