"""The embedded chat task: reward models that train, a judge and a baseline that only evaluate."""

import json
from pathlib import Path

import pytest

from kit.runlog import describe
from kit.tasks import embedded_chat
from kit.tasks.embedded_chat import load_baseline
from kit.tasks.task import Task


def test_every_held_out_request_has_completions_to_win_against() -> None:
    baseline = load_baseline()
    validation = embedded_chat().split("validation")
    assert set(baseline) == {prompt.id for prompt in validation}
    assert {len(texts) for texts in baseline.values()} == {4}


def test_the_reward_model_prefers_a_good_answer() -> None:
    [function], weights = embedded_chat().rewards()
    asked = [{"role": "user", "content": "tell me about owls ."}]
    good = "sure . owls hunt mostly at night . owls fly almost without sound . owls can turn their heads very far ."
    bad = ["cows eat grass .", "owls hunt mostly at night . owls hunt mostly at night .", "that is a big subject ."]
    scores = function(prompts=[asked] * 4, completions=[good, *bad], completion_ids=[[]] * 4, topic=["owls"] * 4)
    assert scores[0] > max(scores[1:])
    assert weights == [1.0]


def test_the_task_can_be_described_and_other_weights_are_another_task() -> None:
    chat, biased = embedded_chat(), embedded_chat("data/reward_model_biased")
    assert isinstance(chat, Task)
    assert json.loads(json.dumps(describe(chat))) != json.loads(json.dumps(describe(biased)))
    assert describe(chat)["judging"]["pairwise"] == "gold_judge"
    assert describe(chat)["reward_functions"][0]["name"] == "reward_model"


def test_a_missing_reward_model_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="no/such/model"):
        embedded_chat("no/such/model")


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"id": "chat/é", "completions": ["a .", ""]}\n', encoding="utf-8")
    assert load_baseline(tmp_path / "b.jsonl") == {"chat/é": ("a .", "")}
