"""Values that flow through the kit are frozen, and a configuration refuses what cannot work."""

import dataclasses

import pytest

from kit.config import RunConfig, Sampling
from kit.types import Example, Group, Prompt, Rollout, Totals

PROMPT = Prompt("p", "1+1=", {"solution": "2"})
ROLLOUT = Rollout((3, 4), (5, 1), (-0.5, -1.0), (0.7, 0.1), "x", "stop", 0)


@pytest.mark.parametrize(
    "value",
    [PROMPT, ROLLOUT, Group(PROMPT, (ROLLOUT,)), Example((ROLLOUT,)), Totals(1, 1, 2, 1), Sampling(), RunConfig()],
)
def test_values_are_frozen(value: object) -> None:
    name = dataclasses.fields(value)[0].name  # pyright: ignore[reportArgumentType]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, None)


def test_top_k_has_no_knob() -> None:
    assert tuple(f.name for f in dataclasses.fields(Sampling)) == ("max_completion_length", "temperature", "top_p")


def test_defaults_sample_from_the_whole_distribution() -> None:
    assert (Sampling().temperature, Sampling().top_p) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompts_per_step", 0), ("group_size", 0), ("max_steps", 0), ("eval_steps", 0), ("eval_prompts", 0),
        ("eval_samples", -1), ("save_steps", 0), ("micro_batch_size", 0), ("num_threads", 0), ("learning_rate", 0.0),
        ("learning_rate", -1e-4), ("learning_rate", float("nan")), ("max_grad_norm", 0.0), ("adam_epsilon", 0.0),
        ("warmup_steps", -1), ("weight_decay", -0.1), ("seed", -1), ("adam_beta1", 1.0), ("adam_beta2", -0.1),
        ("reuse_epochs", 0), ("reuse_epochs", -1), ("drift_prompts", 0), ("max_age", -1),
        ("gap_steps", 0), ("gap_steps", -1),
    ],
)  # fmt: skip
def test_run_config_refuses_naming_the_field_and_the_value(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"RunConfig\.{name} must be .*got {value!r}"):
        RunConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_completion_length", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
    ],
)
def test_sampling_refuses_naming_the_field_and_the_value(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"Sampling\.{name} must be .*got {value!r}"):
        Sampling(**{name: value})


@pytest.mark.parametrize("name", ["learning_rates", "top_k", "sync_interval"])
def test_run_config_refuses_an_unknown_field(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        RunConfig(**{name: 1})


@pytest.mark.parametrize("name", ["max_steps", "save_steps"])
def test_steps_and_checkpoints_come_in_whole_batches(name: str) -> None:
    assert RunConfig(reuse_epochs=4, max_steps=8, save_steps=4).reuse_epochs == 4
    with pytest.raises(ValueError, match=rf"RunConfig\.{name} must be a multiple of reuse_epochs, got 10"):
        RunConfig(**({"reuse_epochs": 4, "max_steps": 8, "save_steps": 4} | {name: 10}))


def test_limits_are_allowed() -> None:
    assert (RunConfig(max_age=0).max_age, RunConfig().max_age) == (0, None)
    assert Sampling(max_completion_length=1, temperature=0.0, top_p=1.0).temperature == 0.0
    assert RunConfig(warmup_steps=0, adam_beta1=0.0, weight_decay=0.0, seed=0, group_size=1).group_size == 1
