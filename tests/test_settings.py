"""The knobs of a running run: which it has, and what they refuse."""

import math

import pytest

from kit.config import RunConfig, Sampling
from kit.objectives import DPO, GRPO
from kit.settings import CHANGEABLE, Settings
from kit.sync import Every, Never, OnDrift

ONLINE_DPO = Settings(
    RunConfig(learning_rate=1e-5, seed=3, sampling=Sampling(temperature=0.7)), DPO(beta=0.2), Every(1)
)


def test_a_run_has_the_knobs_of_its_objective_and_those_of_every_run() -> None:
    assert ONLINE_DPO.values() == {
        "sync_interval": 1, "learning_rate": 1e-5, "seed": 3, "temperature": 0.7, "beta": 0.2, "entropy_coef": 0.0,
        "nll_coef": 0.0,
    }  # fmt: skip
    of_grpo = Settings(RunConfig(), GRPO(kl_coef=0.3), Never()).values()
    assert (of_grpo["kl_coef"], of_grpo["sync_interval"], "beta" in of_grpo) == (0.3, None, False)
    assert {*ONLINE_DPO.values(), *of_grpo} == set(CHANGEABLE)  # every knob is explained, and none is only explained


def test_another_schedule_shows_as_its_own_text_and_gives_way_to_an_interval() -> None:
    settings = Settings(RunConfig(), DPO(), OnDrift(max_kl=0.1))
    assert "max_kl=0.1" in str(settings.values()["sync_interval"])
    assert settings.changed({"sync_interval": 4}).sync == Every(4)
    assert settings.changed({"beta": 0.5}).sync == OnDrift(max_kl=0.1)


def test_a_change_changes_what_it_names_and_nothing_else() -> None:
    changed = ONLINE_DPO.changed({"sync_interval": None, "learning_rate": 1e-3, "temperature": 2, "beta": 0.4})
    expected = RunConfig(learning_rate=1e-3, seed=3, sampling=Sampling(temperature=2))
    assert changed == Settings(expected, DPO(beta=0.4), Never())
    assert ONLINE_DPO.changed({}) == ONLINE_DPO


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kl_coef": 0.1}, ValueError, "nothing called 'kl_coef' to change; it has sync_interval, learning_rate"),
        ({"max_steps": 10}, ValueError, "nothing called 'max_steps'"),
        ({"beta": "0.1"}, TypeError, "expected beta as int or float, came '0.1'"),
        ({"beta": True}, TypeError, "expected beta as int or float, came True"),
        ({"beta": 0}, ValueError, "DPO.beta must be above 0"),
        ({"beta": math.nan}, ValueError, "expected a finite beta, came nan"),
        ({"learning_rate": math.inf}, ValueError, "expected a finite learning_rate"),
        ({"learning_rate": -1e-5}, ValueError, "RunConfig.learning_rate must be above 0"),
        ({"sync_interval": 0}, ValueError, "write None"),
        ({"sync_interval": 2.0}, TypeError, "expected sync_interval as int or None, came 2.0: s, optimizer steps"),
        ({"temperature": -1}, ValueError, "Sampling.temperature must be 0"),
        ({"seed": 1.5}, TypeError, "expected seed as int"),
        ({"seed": None}, TypeError, "expected seed as int"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")):
        ONLINE_DPO.changed(changes)
