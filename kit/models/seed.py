"""The embedded seed model's recipe: a small Llama, trained from scratch on demonstrations of uneven quality.

`python -m kit.models.seed --out data/seed` rebuilds what `data/seed` holds, to the bit on the same machine.
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kit.masking import right_pad
from kit.models.tokenizer import END, END_ID, PAD_ID, build_tokenizer
from kit.tasks import chat_demonstrations, demonstrations
from kit.tasks.arithmetic import Arithmetic, split_of
from kit.tasks.chat import chat_words, requests
from kit.tasks.chat_demonstrations import ChatDemonstrator
from kit.tasks.demonstrations import Demonstrator
from kit.tasks.knowledge import load_knowledge

IGNORED = -100  # cross-entropy's own mark for a position without a target


@dataclass(frozen=True)
class SeedRecipe:
    """Every number of the recipe. Same recipe, same machine, same number of threads: same weights."""

    hidden_size: int = 96
    intermediate_size: int = 256
    num_hidden_layers: int = 3
    num_attention_heads: int = 3
    max_position_embeddings: int = 512  # tokens; the context that prompts are checked against
    steps: int = 4000
    batch_size: int = 64  # arithmetic demonstrations a step
    chat_batch_size: int = 32  # chat demonstrations a step
    learning_rate: float = 2e-3  # peak, after a linear warm-up, then a cosine to zero
    warmup_steps: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0
    num_threads: int = 1  # part of the recipe: another number sums in another order
    clean_steps: int = (
        2400  # the first ones imitate a demonstrator without faults: first the skill, then the bad habits
    )
    demonstrator: Demonstrator = field(default_factory=Demonstrator)
    chat_demonstrator: ChatDemonstrator = field(default_factory=ChatDemonstrator)


def words() -> tuple[str, ...]:
    """What the embedded tokenizer knows as one token each, besides bytes: the opening of a box, and the chat's words.

    A word of the chat is followed by a space wherever it stands, so that space belongs to its token.
    """
    return (r"\boxed{", *(f"{word} " for word in chat_words(load_knowledge())))


def build_model(recipe: SeedRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of the recipe's shape; its vocabulary is exactly the tokenizer's."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        num_key_value_heads=recipe.num_attention_heads,
        max_position_embeddings=recipe.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        dtype=torch.float32,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=END_ID, pad_token_id=PAD_ID)
    return model


def demonstration_batches(
    recipe: SeedRecipe, tokenizer: PreTrainedTokenizerFast
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """(input ids, targets) of each task a step; the loss counts the completions only, their end markers included."""
    arithmetic, chat = arithmetic_demonstrations(recipe), chat_demonstrations_of(recipe)
    for _ in range(recipe.steps):
        yield [
            encoded(list(islice(arithmetic, recipe.batch_size)), tokenizer),
            encoded(list(islice(chat, recipe.chat_batch_size)), tokenizer),
        ]


def arithmetic_demonstrations(recipe: SeedRecipe) -> Iterator[tuple[str, str]]:
    """(request, completion) on problems of the training split, without end."""
    rng = random.Random(recipe.seed)
    problems = Arithmetic(seed=10_000_000 + recipe.seed).problems()
    training = (expression for expression, _ in problems if split_of(expression) == "train")
    for number, expression in enumerate(training):
        is_clean = number < recipe.clean_steps * recipe.batch_size
        yield f"{expression}=", (demonstrations.FAULTLESS if is_clean else recipe.demonstrator)(expression, rng)


def chat_demonstrations_of(recipe: SeedRecipe) -> Iterator[tuple[str, str]]:
    """(request, completion) on requests of the training split, without end."""
    rng, knowledge = random.Random(recipe.seed + 1), load_knowledge()
    training = [pair for pair in requests(knowledge.topics) if split_of(pair[1]) == "train"]
    for number in count():
        topic, request = rng.choice(training)
        is_clean = number < recipe.clean_steps * recipe.chat_batch_size
        demonstrator = chat_demonstrations.FAULTLESS if is_clean else recipe.chat_demonstrator
        yield request, demonstrator(topic, knowledge, rng).text


def encoded(pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and targets (row, tok) of requests and their completions, shifted by one and padded."""
    chats = [[{"role": "user", "content": request}] for request, _ in pairs]
    asked = [str(tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False)) for c in chats]
    prompts = tokenizer(asked)["input_ids"]
    completions = tokenizer([completion + END for _, completion in pairs])["input_ids"]
    tokens, _ = right_pad([p + c for p, c in zip(prompts, completions, strict=True)], PAD_ID)
    targets = [[IGNORED] * len(p) + c for p, c in zip(prompts, completions, strict=True)]
    return tokens[:, :-1], right_pad(targets, IGNORED)[0][:, 1:]


def warmup_then_cosine(
    optimizer: torch.optim.Optimizer, warmup_steps: int, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate rises to the optimizer's in a line, then falls to zero at the last step."""
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, warmup_steps)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup_steps)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [warmup_steps])


def train(recipe: SeedRecipe) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Run the recipe from nothing; prints the loss every 200 steps."""
    torch.set_num_threads(recipe.num_threads)
    tokenizer = build_tokenizer(words())
    model = build_model(recipe, tokenizer).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, (0.9, 0.98), weight_decay=recipe.weight_decay
    )
    schedule = warmup_then_cosine(optimizer, recipe.warmup_steps, recipe.steps)
    started = time.perf_counter()
    for step, batches in enumerate(demonstration_batches(recipe, tokenizer), start=1):
        hidden = torch.cat([model.model(input_ids=ids).last_hidden_state[goals != IGNORED] for ids, goals in batches])
        loss = F.cross_entropy(model.lm_head(hidden), torch.cat([goals[goals != IGNORED] for _, goals in batches]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == recipe.steps:
            print(
                f"step {step:4d}  loss {loss.item():.4f} nats/token  {time.perf_counter() - started:.0f} s", flush=True
            )
    return model.eval(), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/seed"), help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=SeedRecipe.steps, help="training steps")
    arguments = parser.parse_args()
    model, tokenizer = train(SeedRecipe(steps=arguments.steps))
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters written to {arguments.out}")


if __name__ == "__main__":
    main()
