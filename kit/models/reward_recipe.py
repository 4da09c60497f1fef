"""The embedded reward models' recipe: Bradley-Terry on noisy preferences between the seed model's own completions.

`python -m kit.models.reward_recipe` rebuilds `data/reward_model`, whose annotator has no bias, then
`data/reward_model_biased`, whose annotator likes length, and the seed model's completions that policies are compared
with. It asks the gold utility for preferences, as one would ask people; no policy that trains on the reward models sees
that utility.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerBase

from kit.config import Sampling
from kit.losses import bradley_terry_loss
from kit.masking import right_pad
from kit.models.policy import load_policy
from kit.models.seed import warmup_then_cosine
from kit.models.tokenizer import PAD_ID
from kit.preferences import BradleyTerry, expected_accuracy
from kit.samplers import TransformersSampler
from kit.tasks.chat import chat_prompts
from kit.tasks.gold import gold_utility
from kit.types import Group, Prompt

ANNOTATORS = {  # folder -> who annotates its preferences
    "reward_model": BradleyTerry(),
    "reward_model_biased": BradleyTerry(length_bonus=0.25),
}
SAMPLING = Sampling(max_completion_length=80)
GROUP_SIZE = 4
BASELINE_SAMPLES = 4  # of the seed model for every held-out request


@dataclass(frozen=True)
class RewardRecipe:
    """Every number of the recipe but the annotator's. Same recipe, same machine, one thread: same weights."""

    annotator: BradleyTerry
    requests: int = 25_600  # whose completions are compared
    steps: int = 3200
    batch_size: int = 16  # requests a step; all pairs of a request's completions are compared
    opinions: int = 8  # preferences drawn for a pair, each time that it is seen
    learning_rate: float = 3e-4  # peak, after a linear warm-up, then a cosine to zero
    warmup_steps: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Comparable:
    """Completions for one request, and what is known of them."""

    tokens: tuple[tuple[int, ...], ...]  # of each whole conversation, as a reward model reads it
    utilities: tuple[float, ...]
    lengths: tuple[int, ...]  # words

    def pairs(self) -> list[tuple[int, int, float, float]]:
        """(first, second, utility of the first minus the second's, words likewise) of all pairs."""
        return [
            (a, b, self.utilities[a] - self.utilities[b], self.lengths[a] - self.lengths[b])
            for a, b in combinations(range(len(self.tokens)), 2)
        ]


@dataclass(frozen=True)
class Quality:
    """What a reward model is worth on pairs that it did not see. Rates are exact expectations over preferences."""

    accuracy: float  # agreement with the annotator
    noise_ceiling: float  # of one who goes by the annotator's own utilities, its bias included
    length_bias: float  # utility units a word: what the score gives for length, relative to what it gives for utility
    pairs: int


def sampled(
    sampler: TransformersSampler, prompts: Sequence[Prompt], *, requests: int, seed: int, chunk: int = 512
) -> Iterator[Comparable]:
    """`GROUP_SIZE` completions of the sampler for each of `requests` random prompts."""
    rng = random.Random(seed)
    for start in range(0, requests, chunk):
        chosen = rng.sample(prompts, min(chunk, len(prompts), requests - start))
        for group in sampler.generate(chosen, GROUP_SIZE, seed=(seed, start), sampling=SAMPLING):
            yield _comparable(group, sampler.tokenizer)


def _comparable(group: Group, tokenizer: PreTrainedTokenizerBase) -> Comparable:
    texts = [rollout.text for rollout in group.rollouts]
    utilities = gold_utility(texts, [group.prompt.columns["topic"]] * len(texts))
    conversations = [[*group.prompt.content, {"role": "assistant", "content": text}] for text in texts]
    rendered = [str(tokenizer.apply_chat_template(messages, tokenize=False)) for messages in conversations]
    tokens = tuple(tuple(ids) for ids in tokenizer(rendered, add_special_tokens=False)["input_ids"])
    return Comparable(tokens, tuple(utilities), tuple(len(text.split()) for text in texts))


def build_classifier(seed_model: str) -> LlamaForSequenceClassification:
    """A classifier with one output on the seed model's body; before training every score is 0."""
    policy, _ = load_policy(seed_model)
    config = LlamaConfig(**(policy.config.to_dict() | {"id2label": {0: "score"}, "label2id": {"score": 0}}))
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(policy.get_decoder().state_dict())
    torch.nn.init.zeros_(model.score.weight)
    return model


def train(recipe: RewardRecipe, groups: Sequence[Comparable], model: LlamaForSequenceClassification) -> None:
    """Fit the model to preferences drawn by the recipe's annotator; prints the loss every 100 steps."""
    rng = random.Random(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = warmup_then_cosine(optimizer, recipe.warmup_steps, recipe.steps)
    started = time.perf_counter()
    for step in range(recipe.steps):
        start = step * recipe.batch_size % len(groups)
        batch = groups[start : start + recipe.batch_size]
        scores = _scores(model, [row for group in batch for row in group.tokens])
        chosen, rejected = _preferences(batch, recipe.annotator, recipe.opinions, rng)
        loss, metrics = bradley_terry_loss(scores[chosen], scores[rejected])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - started
            print(f"step {step + 1:4d}  loss {loss.item():.4f}  accuracy {metrics['accuracy']:.2f}  {seconds:.0f} s")


def _preferences(
    batch: Sequence[Comparable], annotator: BradleyTerry, opinions: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Rows of the preferred and of the other completion, counted through the batch; a pair comes `opinions` times."""
    rows, start = [], 0
    for group in batch:
        rows += [(start + a, start + b, gap, length_gap) for a, b, gap, length_gap in group.pairs()] * opinions
        start += len(group.tokens)
    is_first = annotator.draw([row[2] for row in rows], [row[3] for row in rows], rng)
    ordered = [(a, b) if first else (b, a) for (a, b, _, _), first in zip(rows, is_first, strict=True)]
    return [a for a, _ in ordered], [b for _, b in ordered]


@torch.no_grad()
def quality(model: LlamaForSequenceClassification, groups: Sequence[Comparable], annotator: BradleyTerry) -> Quality:
    """How well the model predicts an annotator, and what it pays for length.

    The length bias is the ratio of the two slopes of a least-squares fit of score differences on differences in utility
    and in words; an annotator's own is its `length_bonus`.
    """
    scores = _scores(model, [row for group in groups for row in group.tokens]).tolist()
    rows, score_gaps, start = [], [], 0
    for group in groups:
        for a, b, gap, length_gap in group.pairs():
            rows.append((gap, length_gap))
            score_gaps.append(scores[start + a] - scores[start + b])
        start += len(group.tokens)
    probabilities = [annotator.probability(*row) for row in rows]
    target = torch.tensor(score_gaps, dtype=torch.float64)[:, None]
    slopes = torch.linalg.lstsq(torch.tensor(rows, dtype=torch.float64), target).solution[:, 0]
    return Quality(
        accuracy=expected_accuracy(score_gaps, probabilities),
        noise_ceiling=expected_accuracy([p - 0.5 for p in probabilities], probabilities),
        length_bias=(slopes[1] / slopes[0]).item(),
        pairs=len(rows),
    )


def _scores(model: LlamaForSequenceClassification, rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """(row,) scores. Rows of like length are read together: half of the work would be padding otherwise."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    found = []
    for start in range(0, len(order), 32):
        tokens, mask = right_pad([rows[index] for index in order[start : start + 32]], PAD_ID)
        found.append(model(input_ids=tokens, attention_mask=mask.long()).logits[:, 0])
    return torch.cat(found)[torch.tensor(order).argsort()]


def write_baseline(sampler: TransformersSampler, path: Path) -> None:
    """The seed model's completions of every held-out request, as JSON lines: what a policy has to beat."""
    prompts = chat_prompts()["validation"]
    groups = sampler.generate(prompts, BASELINE_SAMPLES, seed=(0,), sampling=SAMPLING)
    rows = [{"id": group.prompt.id, "completions": [rollout.text for rollout in group.rollouts]} for group in groups]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed-model", default="data/seed", help="folder of the model to start from")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder to write to")
    parser.add_argument("--only", choices=[*ANNOTATORS, "baseline"], help="rebuild this alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy, tokenizer = load_policy(arguments.seed_model)
    sampler, prompts = TransformersSampler(policy, tokenizer), chat_prompts()
    if arguments.only in (None, "baseline"):
        write_baseline(sampler, arguments.out / "chat" / "baseline.jsonl")
    names = [name for name in ANNOTATORS if arguments.only in (None, name)]
    groups = list(sampled(sampler, prompts["train"], requests=RewardRecipe.requests, seed=1)) if names else []
    held_out = list(sampled(sampler, prompts["validation"], requests=len(prompts["validation"]), seed=2))
    for name in names:
        model = build_classifier(arguments.seed_model)
        train(RewardRecipe(ANNOTATORS[name]), groups, model.train())
        print(name, quality(model.eval(), held_out, ANNOTATORS[name]))
        model.save_pretrained(arguments.out / name)
        tokenizer.save_pretrained(arguments.out / name)


if __name__ == "__main__":
    main()
