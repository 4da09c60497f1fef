"""The embedded seed model and its data card."""

import hashlib
import re
from itertools import islice
from pathlib import Path

import torch

from kit.config import Sampling
from kit.models.policy import load_policy
from kit.models.seed import (
    SeedRecipe,
    arithmetic_demonstrations,
    build_model,
    chat_demonstrations_of,
    demonstration_batches,
    train,
    words,
)
from kit.models.tokenizer import build_tokenizer
from kit.samplers import TransformersSampler
from kit.tasks import Arithmetic
from kit.tasks.arithmetic import split_of
from kit.tasks.chat import Chat
from kit.tasks.gold import contents
from kit.tasks.knowledge import load_knowledge

DATA = Path(__file__).resolve().parent.parent / "data"
SEED = DATA / "seed"


def test_the_data_card_lists_every_file_with_its_checksum() -> None:
    listed = dict(re.findall(r"`(\S+/\S+)` \| `([0-9a-f]{64})`", (DATA / "README.md").read_text()))
    runs = DATA / "recorded"
    lines = [
        line.split("  ") for line in (runs / "SHA256SUMS").read_text().splitlines()
    ]  # as `sha256sum -c` reads them
    listed |= {f"recorded/{name}": digest for digest, name in lines}
    files = [path for path in DATA.rglob("*") if path.is_file()]
    assert listed == {
        path.relative_to(DATA).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path not in (DATA / "README.md", runs / "SHA256SUMS")
    }


def test_the_model_is_small_and_in_safetensors() -> None:
    policy, _ = load_policy(str(SEED))
    assert sum(p.numel() for p in policy.parameters()) <= 3_000_000
    assert sum(path.stat().st_size for path in SEED.iterdir()) < 15_000_000
    assert {path.suffix for path in SEED.iterdir()} <= {".safetensors", ".json", ".jinja"}


def test_sampled_accuracy_leaves_room_on_both_sides() -> None:
    policy, tokenizer = load_policy(str(SEED))
    prompts = Arithmetic().split("test")[:256]
    groups = TransformersSampler(policy, tokenizer, share=True).generate(prompts, 4, seed=(0,), sampling=Sampling())
    right = [
        rollout.text.endswith(rf"\boxed{{{group.prompt.columns['solution']}}}")
        for group in groups
        for rollout in group.rollouts
    ]
    # .35 to .60 are the limits of the recipe; 4 standard errors of 256 problems are about .09.
    assert 0.35 - 0.09 < sum(right) / len(right) < 0.60 + 0.09


def test_the_stored_tokenizer_is_the_one_the_recipe_builds() -> None:
    _, stored = load_policy(str(SEED))
    built = build_tokenizer(words())
    text = "Any text: 25+39, \\boxed{64}, naïve 😀\n what do you know about owls ?"
    assert stored.get_vocab() == built.get_vocab() and stored(text)["input_ids"] == built(text)["input_ids"]
    assert stored.chat_template == built.chat_template


def test_the_model_knows_its_facts_and_leaves_room_for_the_chat_too() -> None:
    policy, tokenizer = load_policy(str(SEED))
    sampling = Sampling(max_completion_length=80)
    prompts = Chat((len,), (1.0,)).split("test")[:128]
    groups = TransformersSampler(policy, tokenizer, share=True).generate(prompts, 4, seed=(0,), sampling=sampling)
    found = [
        contents(group.prompt.columns["topic"], rollout.text, load_knowledge())
        for group in groups
        for rollout in group.rollouts
    ]
    told = sum(c.facts + c.repeats + c.off_topic + c.courtesies + c.fillers for c in found)
    assert sum(c.garbled for c in found) < 0.03 * told
    assert min(sum(getattr(c, kind) for c in found) for kind in ("repeats", "off_topic", "courtesies", "fillers")) > 100
    assert 1 < sum(c.facts for c in found) / len(found) < 2.5  # of four


def test_a_request_and_an_answer_are_one_token_a_word() -> None:
    _, tokenizer = load_policy(str(SEED))
    text = "sure . owls hunt mostly at night ."
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == [
        "sureĠ", ".Ġ", "owlsĠ", "huntĠ", "mostlyĠ", "atĠ", "nightĠ", ".",
    ]  # fmt: skip


def test_two_rebuilds_are_equal_to_the_bit() -> None:
    recipe = SeedRecipe(steps=4, clean_steps=2, warmup_steps=1, batch_size=8, chat_batch_size=4, hidden_size=16,
                        num_attention_heads=2)  # fmt: skip
    first, second = (train(recipe)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_counts_the_completion_and_its_end_marker_only() -> None:
    recipe, tokenizer = SeedRecipe(steps=1, batch_size=4, chat_batch_size=3), build_tokenizer(words())
    arithmetic, chat = next(iter(demonstration_batches(recipe, tokenizer)))
    assert (len(arithmetic[0]), len(chat[0])) == (4, 3)
    for tokens, targets in (arithmetic, chat):
        for row, goal in zip(tokens.tolist(), targets.tolist(), strict=True):
            counted = [token for token in goal if token != -100]
            text = tokenizer.decode(row)
            assert text.startswith("<|user|>") and text.index("<|assistant|>") > 0
            assert tokenizer.decode(counted).endswith("<|end|>")
            assert "<|" not in tokenizer.decode(counted)[: -len("<|end|>")]  # no prompt, no padding
    assert build_model(recipe, tokenizer).config.vocab_size == len(tokenizer)


def test_only_requests_and_problems_of_the_training_split_are_demonstrated() -> None:
    recipe = SeedRecipe()
    asked = [text for text, _ in islice(chat_demonstrations_of(recipe), 500)]
    asked += [text.rstrip("=") for text, _ in islice(arithmetic_demonstrations(recipe), 500)]
    assert {split_of(text) for text in asked} == {"train"}
