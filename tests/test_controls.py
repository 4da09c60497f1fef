"""The hand on a run: what is set from any thread is taken between two steps, and a pause holds the run."""

import threading
from collections.abc import Callable

import pytest

from kit.config import RunConfig
from kit.controls import Controls
from kit.objectives import DPO
from kit.settings import Settings
from kit.sync import Every

START = Settings(RunConfig(), DPO(), Every(10))


def anything(settings: Settings) -> None:
    """No settings are refused."""


def never() -> None:
    raise AssertionError("expected a run that does not stand")


def eventually(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        threading.Event().wait(0.01)
    raise AssertionError("waited 10 s in vain")


def test_what_is_set_waits_for_the_next_step_and_is_taken_once() -> None:
    controls = Controls(START, anything)
    controls.set(beta=0.3)
    controls.set(sync_interval=1)
    controls.set(beta=0.4)
    assert (controls["beta"], controls.pending()) == (0.1, {"beta": 0.4, "sync_interval": 1})
    settings, changes = controls.take(7)
    assert (settings, changes) == (Settings(RunConfig(), DPO(beta=0.4), Every(1)), {"beta": 0.4, "sync_interval": 1})
    assert (controls["beta"], controls.pending()) == (0.4, {})
    assert controls.take(8) == (settings, {})


def test_a_refused_value_changes_nothing() -> None:
    def no_online(settings: Settings) -> None:
        if settings.sync == Every(1):
            raise ValueError("not online")

    controls = Controls(START, no_online)
    for changes in ({"beta": 0.5, "sync_interval": 0}, {"beta": 0.5, "sync_interval": 1}, {"beta": 0.5, "gamma": 1}):
        with pytest.raises(ValueError, match=r"write None|not online|nothing called 'gamma'"):
            controls.set(**changes)
    assert controls.take(0) == (START, {})


def test_the_check_sees_what_was_set_before_and_is_not_yet_in_force() -> None:
    seen = []
    controls = Controls(START, lambda settings: seen.append((settings.objective, settings.sync)))
    controls.set(beta=0.2)
    controls.set(sync_interval=1)
    assert seen == [(DPO(beta=0.2), Every(10)), (DPO(beta=0.2), Every(1))]


def test_recorded_changes_come_again_at_their_steps_and_are_not_new() -> None:
    recorded = [(5, {"beta": 0.5}), (2, {"beta": 0.2, "sync_interval": 4}), (5, {"beta": 0.6})]
    controls = Controls(START, anything, recorded)
    betas = []
    for step in range(7):
        settings, changes = controls.take(step)
        assert changes == {}
        betas.append(settings.objective.beta)
    assert betas == [0.1, 0.1, 0.2, 0.2, 0.2, 0.6, 0.6]
    assert controls["sync_interval"] == 4


def test_what_is_set_by_hand_wins_over_what_is_recorded_for_the_same_step() -> None:
    controls = Controls(START, anything, [(3, {"beta": 0.3, "nll_coef": 0.1})])
    controls.set(beta=0.9)
    settings, changes = controls.take(3)
    assert (settings.objective, changes) == (DPO(beta=0.9, nll_coef=0.1), {"beta": 0.9})


def test_a_paused_run_waits_until_it_is_resumed() -> None:
    controls = Controls(START, anything)
    controls.wait(never)  # does not block
    controls.pause()
    passed, stood = threading.Event(), threading.Event()
    runner = threading.Thread(target=lambda: (controls.wait(stood.set), passed.set()))
    runner.start()
    assert stood.wait(10) and controls.is_paused and not passed.wait(0.2)
    controls.resume()
    assert passed.wait(10) and not controls.is_paused
    runner.join()


def test_each_step_lets_one_step_through() -> None:
    controls = Controls(START, anything)
    controls.pause()
    steps: list[int] = []

    def run() -> None:
        for number in range(5):
            controls.wait(lambda: None)
            steps.append(number)

    runner = threading.Thread(target=run)
    runner.start()
    controls.step()
    eventually(lambda: steps == [0])
    controls.step()
    controls.step()
    eventually(lambda: steps == [0, 1, 2])
    assert controls.is_paused and runner.is_alive()
    controls.resume()
    runner.join(10)
    assert steps == [0, 1, 2, 3, 4]


def test_step_halts_a_run_that_is_going() -> None:
    controls = Controls(START, anything)
    controls.step()
    controls.wait(never)
    assert controls.is_paused


def test_a_paused_run_goes_on_polling_and_a_poll_may_resume_it() -> None:
    controls = Controls(START, anything)
    polls = []

    def poll() -> None:
        polls.append(threading.current_thread())
        if len(polls) == 3:
            controls.resume()

    controls.poll = poll
    controls.pause()
    stood = []
    controls.wait(lambda: stood.append(len(polls)))  # would never return if nobody polled
    assert polls == [threading.current_thread()] * 3
    assert stood == [1]  # it is told once


def test_settings_from_many_threads_all_arrive() -> None:
    controls = Controls(START, anything)
    values = [0.1 + number / 100 for number in range(40)]
    threads = [threading.Thread(target=controls.set, kwargs={"beta": value}) for value in values]
    for thread in threads:
        thread.start()
    taken = [controls.take(step)[1] for step in range(5)]
    for thread in threads:
        thread.join()
    settings, changes = controls.take(5)
    last = [change["beta"] for change in [*taken, changes] if change][-1]
    assert settings.objective.beta == last and last in values
