"""What is kept of every completion: roles by hand, log-probs beside a plain forward pass, the same files again."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from kit.columns import COLUMNS, as_table
from kit.importance import DecoupledPPO
from kit.learner import Logprobs, NonFiniteError
from kit.objectives import DPO, GRPO
from kit.pairing import all_pairs
from kit.recording import Recorder, prompt_text, roles_of
from kit.rollouts import Batch, totals_of
from kit.run import Run
from kit.sync import Every, Never
from kit.types import Example, Group, Prompt, Rollout
from tests.conftest import TinyTask

Start = Callable[..., Run]
LISTS = ["pieces", "old_logprobs", "entropies", "logprobs", "ref_logprobs"]


def rows(out_dir: Path, step: int, folder: str = "rollouts", task: str = "") -> list[dict[str, Any]]:
    return pq.read_table(out_dir / folder / f"{task}step_{step:06d}.parquet").to_pylist()


def group(*rewards: float | None, name: str = "p") -> Group:
    """Completion i is the token i + 5, twice; it was drawn with log-probs -1."""
    rollouts = tuple(
        Rollout((3,), (i + 5, i + 5), (-1.0, -1.0), (), f"text {i}", "stop", 4) for i in range(len(rewards))
    )
    return Group(Prompt(name, "1+1=", {"task": "sums"}), rollouts, rewards, {"right": rewards})


class Letters(PreTrainedTokenizerBase):
    """Decodes the id n as the n-th letter, and counts how often it was asked."""

    asked = 0

    def __init__(self) -> None: ...

    def decode(self, ids: list[int]) -> str:  # type: ignore[override]
        self.asked += 1
        return "abcdefghijklmnop"[ids[0]]


def recorded(
    groups: list[Group], selected: list[list[Example]], before: list[Logprobs], *, dropped: bool = False
) -> list[dict[str, Any]]:
    examples = [example for of_group in selected for example in of_group]
    batch = Batch(groups, selected, examples, totals_of(groups, examples), {})
    columns = Recorder(Letters()).rollouts(batch, [] if dropped else examples, before)
    return as_table(columns).to_pylist()


def test_every_column_is_written_in_the_order_of_its_definition(start: Start, tmp_path: Path) -> None:
    start(tmp_path, max_steps=1).finish()
    [row, *_] = rows(tmp_path, 0)
    assert list(row) == list(COLUMNS)
    [held_out, *_] = rows(tmp_path, 0, "evaluations", "tiny_")
    assert list(held_out) == [
        name for name in COLUMNS if name not in ("version", "role", "reason", "logprobs", "ref_logprobs")
    ]


def test_a_pair_is_trained_on_and_the_others_say_why_not() -> None:
    found = group(1.0, 0.0, 1.0, None)
    chosen, rejected = found.rollouts[0], found.rollouts[1]
    before = [Logprobs([chosen, rejected], torch.tensor([-0.5, -0.25, -2.0, -3.0]), torch.tensor([-1.0, -1, -4, -5]))]
    first, second, third, fourth = recorded([found], [[Example((chosen, rejected), (), (True, False))]], before)
    assert (first["role"], first["reason"], first["logprobs"], first["ref_logprobs"]) == (
        "chosen", None, [-0.5, -0.25], [-1.0, -1.0],
    )  # fmt: skip
    assert (second["role"], second["logprobs"], second["ref_logprobs"]) == ("rejected", [-2.0, -3.0], [-4.0, -5.0])
    assert (third["role"], third["logprobs"], third["ref_logprobs"]) == ("unused", None, None)
    assert third["reason"] == "not drawn: other completions of its group were taken"
    assert fourth["reason"] == "unjudged: no function could judge it" and fourth["reward"] is None
    assert first["rewards"] == [("right", 1.0)] and fourth["rewards"] == [("right", None)]
    assert [row["index"] for row in (first, second, third, fourth)] == [0, 1, 2, 3]
    assert (first["prompt"], first["task"], first["pieces"], first["version"]) == ("1+1=", "sums", ["f", "f"], 4)
    assert first["old_logprobs"] == [-1.0, -1.0] and first["old_logprob"] == -2.0 and first["entropies"] is None


@pytest.mark.parametrize(
    ("rewards", "reasons"),
    [
        ((1.0, 1.0), ["tie", "tie"]),
        ((0.0, None, 0.0), ["tie", "unjudged", "tie"]),
        ((None, 1.0), ["unjudged", "alone"]),
        ((None, None), ["unjudged", "unjudged"]),
        ((1.0, 0.0), ["not selected", "not selected"]),  # an objective of its own mind
    ],
)
def test_a_group_without_a_signal_says_why(rewards: tuple[float | None, ...], reasons: list[str]) -> None:
    found = recorded([group(*rewards)], [[]], [])
    assert [row["role"] for row in found] == ["unused"] * len(rewards)
    assert [row["reason"].partition(":")[0] for row in found] == reasons


def test_what_max_age_dropped_says_so() -> None:
    found = group(1.0, 0.0, 0.0)
    pair = Example((found.rollouts[0], found.rollouts[1]), (), (True, False))
    reasons = [row["reason"].partition(":")[0] for row in recorded([found], [[pair]], [], dropped=True)]
    assert reasons == ["too old", "too old", "not drawn"]


def test_a_completion_can_be_better_than_one_and_worse_than_another() -> None:
    found = group(0.0, 1.0, 2.0)
    examples = DPO(pairing=all_pairs).select(found, torch.Generator())
    assert list(roles_of(examples).values()) == ["chosen and rejected", "rejected", "chosen"]
    assert [row["role"] for row in recorded([found], [examples], [])] == ["rejected", "chosen and rejected", "chosen"]


def test_a_token_is_decoded_once() -> None:
    letters = Letters()
    recorder = Recorder(letters)
    for _ in range(3):
        assert recorder.completions([group(1.0, 0.0, 1.0)])["pieces"] == [["f", "f"], ["g", "g"], ["h", "h"]]
    assert letters.asked == 3


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("1+1=", "1+1="),
        ([{"role": "user", "content": "1+1="}], "1+1="),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "user: a\n\nassistant: b"),
    ],
)
def test_a_prompt_is_kept_as_it_is_read(content: Any, text: str) -> None:
    assert prompt_text(content) == text


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(ValueError, match=r"columns of kit.columns.COLUMNS, came \['rewrd'\]"):
        as_table({"rewrd": [1.0]})


def test_types_do_not_depend_on_what_a_file_happens_to_hold() -> None:
    full = ["p", "t", "x", 0, "y", 1.0, [("f", None)], 3, "stop", -1.0, 1, "chosen", "z", ["a"], [-1], [0], [-1], [-2]]
    columns = {name: [value] for name, value in zip(COLUMNS, full, strict=True)}
    assert as_table({name: [None] for name in COLUMNS}).schema == as_table(columns).schema


def test_recorded_logprobs_are_those_of_a_plain_forward_pass(start: Start, tiny_folder: Path, tmp_path: Path) -> None:
    """Step 0 of DPO: sampler, policy and reference are all the model in `tiny_folder`."""
    start(tmp_path, max_steps=1).finish()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder)
    trained = [row for row in rows(tmp_path, 0) if row["role"] != "unused"]
    assert len(trained) >= 2
    for row in trained:
        messages = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        ids = [token for piece in row["pieces"] for token in tokenizer.encode(piece)]
        if "\ufffd" in "".join(row["pieces"]) or len(ids) != row["tokens"]:
            continue  # a byte that is no text alone cannot be encoded again
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        found = logits.log_softmax(-1)
        expected = found[torch.arange(len(ids)), ids].tolist()
        for name in ("old_logprobs", "logprobs", "ref_logprobs"):
            assert row[name] == pytest.approx(expected, abs=1e-4)
        assert row["entropies"] == pytest.approx((-(found.exp() * found).sum(-1)).tolist(), abs=1e-4)


def test_every_list_has_an_entry_a_token_and_unused_ones_have_no_policy(start: Start, tmp_path: Path) -> None:
    start(tmp_path, sync=Every(3), max_steps=6).finish()
    for step in range(6):
        for row in rows(tmp_path, step):
            unused = row["role"] == "unused"
            assert [row[name] is None for name in LISTS] == [False, False, False, unused, unused]
            assert (row["reason"] is not None) == unused
            assert {len(row[name]) for name in LISTS if row[name] is not None} == {row["tokens"]}
            assert sum(row["old_logprobs"]) == pytest.approx(row["old_logprob"], abs=1e-4)
            assert row["prompt_id"].startswith("tiny/train/") and row["task"] == "tiny"


def test_the_policy_leaves_the_sampler_between_syncs(start: Start, tmp_path: Path) -> None:
    start(tmp_path, sync=Every(3), objective=GRPO(kl_coef=0.1), max_steps=6).finish()
    for step, stale in enumerate([False, True, True] * 2):
        trained = [row for row in rows(tmp_path, step) if row["logprobs"]]
        assert trained and all(row["role"].startswith("advantage=") for row in trained)
        gap = max(abs(a - b) for row in trained for a, b in zip(row["logprobs"], row["old_logprobs"], strict=True))
        assert gap > 1e-2 if stale else gap < 1e-4


def test_without_a_reference_there_are_none_of_its_logprobs(start: Start, tmp_path: Path) -> None:
    start(tmp_path, objective=GRPO(), max_steps=1).finish()
    found = rows(tmp_path, 0)
    assert any(row["logprobs"] for row in found) and all(row["ref_logprobs"] is None for row in found)


def test_a_batch_that_is_used_again_is_recorded_at_its_first_pass(start: Start, tmp_path: Path) -> None:
    objective = GRPO(importance=DecoupledPPO())  # whose examples hold copies of the rollouts
    start(tmp_path, objective=objective, reuse_epochs=2, max_steps=4, save_steps=4).finish()
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == [
        "step_000000.parquet", "step_000002.parquet",
    ]  # fmt: skip
    trained = [row for row in rows(tmp_path, 0) if row["role"] != "unused"]
    assert trained and all(row["logprobs"] == pytest.approx(row["old_logprobs"], abs=1e-4) for row in trained)


def test_rollouts_of_a_step_that_failed_are_kept(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, sync=Never(), eval_steps=99)
    list(run.steps(2))
    assert run.reference is not None
    run.reference.weights.model.get_parameter("model.norm.weight")[0] = float("nan")
    with pytest.raises(NonFiniteError):
        run.finish()
    trained = [row for row in rows(tmp_path, 2) if row["role"] != "unused"]
    assert trained and all(math.isnan(value) for row in trained for value in row["ref_logprobs"])
    assert all(math.isfinite(value) for row in trained for value in row["logprobs"])


def test_a_resumed_run_writes_the_same_files(start: Start, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"sync": Every(3), "objective": GRPO(kl_coef=0.1), "max_steps": 6}
    start(tmp_path / "straight", **settings).finish()
    list(start(tmp_path / "stopped", **settings).steps(5))  # two steps after its checkpoint
    start(tmp_path / "stopped", **settings).finish()
    for folder in ("rollouts", "evaluations"):
        straight = {path.name: path.read_bytes() for path in (tmp_path / "straight" / folder).iterdir()}
        assert {path.name: path.read_bytes() for path in (tmp_path / "stopped" / folder).iterdir()} == straight
        assert len(straight) == {"rollouts": 6, "evaluations": 3}[folder]


def test_held_out_prompts_recur_with_their_tokens(start: Start, tmp_path: Path) -> None:
    start(tmp_path, max_steps=4, task=TinyTask()).finish()
    first, last = (rows(tmp_path, step, "evaluations", "tiny_") for step in (0, 4))
    assert [row["prompt_id"] for row in first] == [row["prompt_id"] for row in last]
    for row in [*first, *last]:
        assert row["index"] in (0, 1) and len(row["pieces"]) == len(row["entropies"]) == row["tokens"]
