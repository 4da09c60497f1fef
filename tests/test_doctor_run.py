"""The doctor beside real runs and on their directories: with a fault, without one, and damaged."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kit.cli import main
from kit.config import Sampling
from kit.doctor import Finding, examine_run
from kit.learner import NonFiniteError
from kit.objectives import DPO, GRPO
from kit.rewards import MathReward
from kit.run import Run
from kit.runlog import RunDirectoryError, RunLog, read_jsonl
from kit.sync import Every, Never
from kit.tasks.arithmetic import Arithmetic
from kit.types import Prompt
from tests.conftest import TinyTask, tiny_run

ROOT = Path(__file__).parents[1]
Start = Callable[..., Run]


def always_zero(completions: Sequence[Any], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def escaping(completions: Sequence[Any], **columns: Any) -> list[float]:
    """A fault whose name could steer a terminal."""
    return [0.0] * len(completions)


escaping.__name__ = "\x1b[2Jnobody"


@dataclass(frozen=True)
class Sums(Arithmetic):
    """The embedded task with prompts as strings, or another reward."""

    as_text: bool = False
    reward: Any = None

    def split(self, name: Any) -> Any:
        if not self.as_text:
            return super().split(name)
        return tuple(Prompt(p.id, p.content[-1]["content"], p.columns) for p in super().split(name))  # pyright: ignore

    def rewards(self) -> Any:
        return ([self.reward] if self.reward else [MathReward()]), [1.0]


def seed_run(out_dir: Path, **changes: Any) -> Run:
    """Some steps of online DPO of the embedded model, 64 completions each."""
    arguments = {"task": Sums(terms=3, digits=2), "max_steps": 8, "prompts_per_step": 8, "eval_steps": 99}
    return tiny_run(
        ROOT / "data" / "seed", out_dir,
        **(arguments | {"group_size": 8, "learning_rate": 5e-5, "sampling": Sampling()} | changes),
    )  # fmt: skip


def events(out_dir: Path) -> list[dict[str, Any]]:
    return [event for event in read_jsonl(out_dir / "events.jsonl") if event["event"] == "doctor"]


def told(out_dir: Path) -> list[tuple[str, str, int]]:
    return [(event["name"], event["severity"], event["step"]) for event in events(out_dir)]


def from_directory(out_dir: Path) -> list[Finding]:
    return list(examine_run(out_dir).findings)


@pytest.mark.parametrize(("objective", "sync"), [(DPO(), Every(1)), (GRPO(), Every(4)), (DPO(), Never())])
def test_nothing_is_said_of_a_healthy_run(tmp_path: Path, objective: Any, sync: Any) -> None:
    seed_run(tmp_path, objective=objective, sync=sync, max_steps=12, eval_steps=6).finish()
    assert events(tmp_path) == []
    diagnosis = examine_run(tmp_path)
    assert (diagnosis.findings, diagnosis.steps, diagnosis.state) == ((), 12, "finished")
    assert "nothing found\nchecked: " in str(diagnosis)


def test_a_verifier_that_always_says_0(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="kit.doctor"):
        seed_run(tmp_path, task=Sums(terms=3, digits=2, reward=always_zero)).finish()
    assert told(tmp_path) == [("verifier_always_zero", "error", 4)]
    (event,) = events(tmp_path)
    assert event["about"] == "always_zero" and "by hand" in event["remedy"] and "(ended, reward 0.0)" in event["seen"]
    (line,) = [record for record in caplog.records if record.name == "kit.doctor.live"]  # once, and not a flood
    assert line.levelno == logging.ERROR and "verifier_always_zero" in line.getMessage()
    (finding,) = from_directory(tmp_path)
    assert finding.details() == {key: value for key, value in event.items() if key not in ("event", "time")}


def test_a_limit_of_four_tokens(tmp_path: Path) -> None:
    seed_run(tmp_path, sampling=Sampling(max_completion_length=4)).finish()
    assert ("truncated", "error", 4) in told(tmp_path)


def test_strings_for_a_chat_model(tmp_path: Path) -> None:
    """It then goes on with the problem, in the form of none of its demonstrations."""
    run = seed_run(tmp_path, task=Sums(terms=3, digits=2, as_text=True), max_steps=1)
    assert told(tmp_path) == [("string_prompts", "warning", 0)]
    run.finish()
    again = seed_run(tmp_path, task=Sums(terms=3, digits=2, as_text=True), max_steps=1)
    assert again.step == 1 and told(tmp_path) == [("string_prompts", "warning", 0)]  # a resumed run was told


def test_a_learning_rate_that_makes_entropy_collapse(start: Start, tmp_path: Path) -> None:
    start(tmp_path, learning_rate=0.1, max_steps=20, eval_steps=99).finish()
    (event,) = [event for event in events(tmp_path) if event["name"] == "entropy_collapse"]
    entropies = [record["sampler/entropy"] for record in read_jsonl(tmp_path / "metrics.jsonl") if "loss" in record]
    now = sum(entropies[event["step"] - 4 : event["step"] + 1]) / 5
    assert now < 0.05 * sum(entropies[:3]) / 3
    start(tmp_path / "calm", max_steps=20, eval_steps=99).finish()
    assert "entropy_collapse" not in {name for name, _, _ in told(tmp_path / "calm")}


def test_a_learning_rate_that_ruins_the_policy(tmp_path: Path) -> None:
    """Accuracy goes from 0.4 to 0 within ten steps."""
    seed_run(tmp_path, objective=GRPO(), learning_rate=3e-3, max_steps=12, eval_steps=6, eval_prompts=32).finish()
    assert "evaluation_falls" in {name for name, _, _ in told(tmp_path)}


def test_an_offline_run_drifts_away(tmp_path: Path) -> None:
    seed_run(tmp_path, sync=Never(), learning_rate=2e-3, max_steps=12).finish()
    found = {name for name, _, _ in told(tmp_path)}
    assert "far_off_policy" in found and "sampler_stale" not in found


def test_a_sampler_that_is_never_synced_though_the_log_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of verl#7495, with the receipt that would have stopped it switched off."""
    run = seed_run(tmp_path, max_steps=3)

    def pretend(log: RunLog) -> None:
        run.sampler.version = run.step

    monkeypatch.setattr(run.training, "_sync", pretend)
    run.finish()
    assert told(tmp_path) == [("sampler_stale", "error", 1)]  # one update after the start


def test_dropout_that_somebody_switched_on(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conftest import first_token_is_even

    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"attention_dropout": 0.3}
    (folder / "config.json").write_text(json.dumps(config))
    run = tiny_run(folder, tmp_path / "run", task=TinyTask(reward=first_token_is_even), max_steps=1, eval_steps=99)
    assert told(tmp_path / "run") == [("dropout_configured", "note", 0)]
    run.policy.train()
    run.finish()
    assert ("sampler_stale", "error", 0) in told(tmp_path / "run")


def test_a_loss_that_is_no_number(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, max_steps=4)
    next(run.steps(1))
    next(run.policy.parameters()).data[:] = float("nan")
    with pytest.raises((NonFiniteError, RuntimeError, ValueError)):
        next(run.steps(1))
    assert [f.severity for f in from_directory(tmp_path)] == ["error"]
    assert main(["doctor", str(tmp_path)]) == 1


def test_a_gradient_that_is_no_number(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, max_steps=4)
    next(run.policy.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError):
        next(run.steps(1))
    (finding,) = from_directory(tmp_path)
    assert (finding.name, finding.severity, finding.step) == ("non_finite", "error", 0)
    assert "gradient norm" in finding.seen


def test_a_run_that_ended_with_an_error_and_was_mended(start: Start, tmp_path: Path) -> None:
    def broken(completion_ids: Sequence[Any], **columns: Any) -> list[float]:
        raise KeyError("solution\x1b[31m")

    run = start(tmp_path, task=TinyTask(reward=broken), max_steps=2, eval_steps=99)
    with pytest.raises(KeyError):
        run.finish()
    (finding,) = from_directory(tmp_path)
    assert finding.name == "run_failed" and "KeyError" in finding.seen and "\x1b" not in str(finding)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "resume", "time": 0.0, "step": 0}\n')
    assert from_directory(tmp_path) == []


def test_a_resumed_run_is_told_the_same(start: Start, tmp_path: Path) -> None:
    zero = {"task": TinyTask(reward=always_zero), "max_steps": 9, "eval_steps": 99, "sampling": Sampling(16)}
    start(tmp_path / "whole", **zero).finish()
    for count in (4, 3, 2):  # 4 steps and one record; then from the checkpoint after 3, and after 6
        list(start(tmp_path / "parts", **zero).steps(count))
    parts = {(name, severity, step) for name, severity, step in told(tmp_path / "parts")}
    assert parts == set(told(tmp_path / "whole")) and ("verifier_always_zero", "error", 4) in parts
    assert from_directory(tmp_path / "parts") == from_directory(tmp_path / "whole")


def test_the_command_line_on_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed_run(tmp_path / "good", max_steps=6).finish()
    assert main(["doctor", str(tmp_path / "good")]) == 0
    assert "6 steps, finished\nnothing found\nchecked: " in capsys.readouterr().out
    seed_run(tmp_path / "bad", max_steps=6, task=Sums(terms=3, digits=2, reward=escaping)).finish()
    assert main(["doctor", str(tmp_path / "bad")]) == 1
    out = capsys.readouterr().out
    assert "error: verifier_always_zero" in out and "\\x1b[2Jnobody" in out and "\x1b" not in out


def test_a_run_under_way(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(tmp_path / "empty", max_steps=4)
    assert main(["doctor", str(tmp_path / "empty")]) == 0
    assert "0 steps, running\nnothing found" in capsys.readouterr().out
    seed_run(tmp_path / "half", max_steps=6, task=Sums(terms=3, digits=2, reward=always_zero)).finish()
    whole = from_directory(tmp_path / "half")
    with (tmp_path / "half" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.')
    assert from_directory(tmp_path / "half") == whole
    shutil.rmtree(tmp_path / "half" / "rollouts")  # too large to keep, perhaps
    (finding,) = from_directory(tmp_path / "half")
    assert finding.name == "verifier_always_zero" and "such as" not in finding.seen


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 2
    assert "expected a run directory with config.json" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path / "no\x1bwhere")]) == 2
    assert "no\\x1bwhere" in capsys.readouterr().err


DAMAGE: dict[str, tuple[str, bytes, str]] = {
    "a config that is no JSON": ("config.json", b"{", "expected JSON in"),
    "a config that is a list": ("config.json", b"[]", "expected a JSON object in"),
    "a record that is no JSON": ("metrics.jsonl", b"{}\n{'step': 1}\n{}\n", "expected a JSON object a line in"),
    "a record that is a number": ("metrics.jsonl", b"7\n", "expected a JSON object a line in"),
    "text of another encoding": ("events.jsonl", b"\xff\xfe\n", "expected a JSON object a line in"),
    "rollouts that are no parquet": ("rollouts/step_000004.parquet", b"PAR1", "expected a parquet file"),
}


@pytest.mark.usefixtures("_shapes_unchecked")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_directory(start: Start, tmp_path: Path, damage: str) -> None:
    start(tmp_path, task=TinyTask(reward=always_zero), max_steps=5, eval_steps=99).finish()
    name, content, message = DAMAGE[damage]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunDirectoryError, match=message):
        examine_run(tmp_path)
    assert main(["doctor", str(tmp_path)]) == 2


def test_records_of_other_types_than_expected_say_nothing(start: Start, tmp_path: Path) -> None:
    start(tmp_path, max_steps=1, eval_steps=99)
    odd = {"step": None, "completions/mean_length": "long", "completions/clipped_ratio": True, "offpolicy/kl": [],
           "eval/accuracy": 0.5, "sync/staleness": "0", "frac_reward_zero_std": None}  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text((json.dumps(odd) + "\n") * 12)
    assert from_directory(tmp_path) == []


def test_the_command_line_on_a_model(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", str(tiny_folder)]) == 0
    assert "nothing found\nchecked: end and padding tokens" in capsys.readouterr().out
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    os.remove(folder / "chat_template.jinja")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": [{"role": "user", "content": "a"}]}\n')
    arguments = ["doctor", "--model", str(folder), "--prompts", str(tmp_path / "prompts.jsonl")]
    assert main([*arguments, "--lora", "lm_head"]) == 1
    out = capsys.readouterr().out
    assert "error: messages_without_template, before the run" in out and "warning: tied_weights_adapted" in out
    assert main([*arguments[:-1], str(tmp_path / "none.jsonl")]) == 2
    assert main(["doctor", "--model", str(tmp_path)]) == 2


@pytest.mark.parametrize("arguments", [[], ["a", "--model", "b"]])
def test_arguments_that_do_not_go_together(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", *arguments])
    assert stopped.value.code == 2 and "error:" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["a", "--prompts", "b"], ["a", "--lora", "b"]])
def test_what_goes_with_a_model_is_refused_for_a_run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert "error: --prompts and --lora go with --model" in capsys.readouterr().err
