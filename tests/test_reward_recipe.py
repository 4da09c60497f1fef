"""The recipe of the embedded reward models: preferences by hand, quality of known scorers, rebuilds to the bit."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import LlamaForSequenceClassification

from kit.models.policy import load_policy
from kit.models.reward_model import RewardModel
from kit.models.reward_recipe import (
    ANNOTATORS,
    Comparable,
    RewardRecipe,
    _preferences,
    build_classifier,
    quality,
    sampled,
    train,
)
from kit.preferences import BradleyTerry
from kit.samplers import TransformersSampler
from kit.tasks.chat import chat_prompts
from kit.tasks.gold import gold_utility

DATA = Path(__file__).resolve().parent.parent / "data"


@pytest.fixture(scope="module")
def groups(seed_folder: Path) -> list[Comparable]:
    sampler = TransformersSampler(*load_policy(str(seed_folder)))
    return list(sampled(sampler, chat_prompts()["validation"], requests=96, seed=5, chunk=40))


def test_pairs_are_all_pairs_of_a_request_with_the_first_minus_the_second() -> None:
    group = Comparable(((1,), (2,), (3,)), (1.0, 0.5, 3.0), (4, 6, 5))
    assert group.pairs() == [(0, 1, 0.5, -2), (0, 2, -2.0, -1), (1, 2, -2.5, 1)]


def test_an_annotator_without_noise_prefers_the_better_one_of_every_pair() -> None:
    batch = [Comparable(((1,), (2,)), (1.0, 5.0), (1, 1)), Comparable(((3,), (4,), (5,)), (0.0, 9.0, 4.0), (1, 1, 1))]
    chosen, rejected = _preferences(batch, BradleyTerry(temperature=1e-3), 1, random.Random(0))
    # rows 0, 1 are the first request's, 2 to 4 the second's
    assert list(zip(chosen, rejected, strict=True)) == [(1, 0), (3, 2), (4, 2), (3, 4)]


def test_samples_are_what_the_reward_model_will_read(groups: list[Comparable], seed_folder: Path) -> None:
    assert len(groups) == 96 and all(len(group.tokens) == 4 for group in groups)
    reward = RewardModel(str(DATA / "reward_model"))
    for group in groups[:8]:
        for row, utility, length in zip(group.tokens, group.utilities, group.lengths, strict=True):
            asked, _, rest = reward.tokenizer.decode(row).removeprefix("<|user|>").partition("<|end|><|assistant|>")
            text = rest.removesuffix("<|end|>")
            assert reward._encode([{"role": "user", "content": asked}], text) == list(row)
            topic = next(p.columns["topic"] for p in chat_prompts()["validation"] if p.content[0]["content"] == asked)
            assert (gold_utility([text], [topic]), len(text.split())) == ([utility], length)


def test_every_pair_gets_as_many_opinions_as_asked_for() -> None:
    batch = [Comparable(((1,), (2,), (3,)), (0.0, 0.0, 0.0), (1, 1, 1))]
    chosen, rejected = _preferences(batch, BradleyTerry(), 100, random.Random(0))
    pairs = Counter(frozenset(pair) for pair in zip(chosen, rejected, strict=True))
    assert pairs == {frozenset(pair): 100 for pair in ((0, 1), (0, 2), (1, 2))}
    # Of equal answers each wins half of its 200 comparisons; five standard deviations are 35.
    assert all(abs(chosen.count(row) - 100) < 36 for row in range(3))


class Scorer(LlamaForSequenceClassification):
    """Scores by a table of token rows instead of a network."""

    def __init__(self, table: dict[tuple[int, ...], float]) -> None:
        torch.nn.Module.__init__(self)
        self.table = table

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):  # type: ignore[no-untyped-def, override]
        from transformers.modeling_outputs import SequenceClassifierOutput

        rows = [tuple(row[: int(n)]) for row, n in zip(input_ids.tolist(), attention_mask.sum(1), strict=True)]
        return SequenceClassifierOutput(logits=torch.tensor([[self.table[row]] for row in rows]))  # type: ignore[arg-type]


@pytest.mark.parametrize("bonus", [0.0, 0.25])
def test_one_who_scores_as_the_annotator_does_reaches_the_ceiling_and_shows_its_bias(
    groups: list[Comparable], bonus: float
) -> None:
    annotator = BradleyTerry(length_bonus=bonus)
    exact = {
        row: 3 * (utility + bonus * length)
        for group in groups
        for row, utility, length in zip(group.tokens, group.utilities, group.lengths, strict=True)
    }
    found = quality(Scorer(exact), groups, annotator)
    assert found.accuracy == pytest.approx(found.noise_ceiling, abs=1e-3)  # ties of floats aside
    assert found.length_bias == pytest.approx(bonus, abs=1e-4)
    assert found.pairs == 96 * 6
    turned = quality(Scorer({row: -score for row, score in exact.items()}), groups, annotator)
    assert turned.accuracy == pytest.approx(1 - found.noise_ceiling, abs=1e-3)


def test_training_teaches_preferences_and_two_rebuilds_are_equal(groups: list[Comparable], seed_folder: Path) -> None:
    recipe = RewardRecipe(BradleyTerry(temperature=0.1), steps=12, batch_size=8, warmup_steps=2)
    models = [build_classifier(str(seed_folder)) for _ in range(2)]
    before = quality(models[0].eval(), groups, recipe.annotator)
    assert before.accuracy == 0.5  # every score is 0 before training
    for model in models:
        train(recipe, groups, model.train())
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert quality(models[0].eval(), groups, recipe.annotator).accuracy > 0.55


def test_the_shipped_models_are_as_good_as_the_data_card_says(groups: list[Comparable]) -> None:
    found = {
        name: quality(LlamaForSequenceClassification.from_pretrained(DATA / name), groups, annotator)  # type: ignore[arg-type]
        for name, annotator in ANNOTATORS.items()
    }
    # 96 requests: a standard error of the ratio of about .01. The full figures are in data/README.md.
    assert found["reward_model"].accuracy / found["reward_model"].noise_ceiling > 0.92
    assert abs(found["reward_model"].length_bias) < 0.05
    assert found["reward_model_biased"].length_bias > 0.12
