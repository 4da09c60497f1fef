"""The embedded seed model and its data card."""

import hashlib
import re
from pathlib import Path

import torch

from kit.config import Sampling
from kit.models.policy import load_policy
from kit.models.seed import SeedRecipe, build_model, demonstration_batches, train
from kit.models.tokenizer import build_tokenizer
from kit.samplers import TransformersSampler
from kit.tasks import Arithmetic

DATA = Path(__file__).resolve().parent.parent / "data"
SEED = DATA / "seed"


def test_the_data_card_lists_every_file_with_its_checksum() -> None:
    listed = dict(re.findall(r"`(\S+/\S+)` \| `([0-9a-f]{64})`", (DATA / "README.md").read_text()))
    files = [path for path in DATA.rglob("*") if path.is_file() and path != DATA / "README.md"]
    assert listed == {
        path.relative_to(DATA).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
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
    built = build_tokenizer((r"\boxed{",))
    text = "Any text: 25+39, \\boxed{64}, naïve 😀\n"
    assert stored.get_vocab() == built.get_vocab() and stored(text)["input_ids"] == built(text)["input_ids"]
    assert stored.chat_template == built.chat_template


def test_two_rebuilds_are_equal_to_the_bit() -> None:
    recipe = SeedRecipe(steps=4, clean_steps=2, warmup_steps=1, batch_size=8, hidden_size=16, num_attention_heads=2)
    first, second = (train(recipe)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_counts_the_completion_and_its_end_marker_only() -> None:
    recipe, tokenizer = SeedRecipe(steps=1, batch_size=4), build_tokenizer((r"\boxed{",))
    tokens, targets = next(iter(demonstration_batches(recipe, tokenizer)))
    for row, goal in zip(tokens.tolist(), targets.tolist(), strict=True):
        counted = [token for token in goal if token != -100]
        text = tokenizer.decode(row)
        assert text.startswith("<|user|>") and text.index("<|assistant|>") > 0
        assert tokenizer.decode(counted).endswith("<|end|>")
        assert "<|" not in tokenizer.decode(counted)[: -len("<|end|>")]  # no prompt, no padding
    assert build_model(recipe, tokenizer).config.vocab_size == len(tokenizer)
