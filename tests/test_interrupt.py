"""Ctrl-C waits for the end of a step, a second one does not; and only on the main thread."""

import os
import signal
import threading
import time

import pytest

from kit.interrupt import deferred_interrupt


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_inside_is_remembered_and_raises_nothing() -> None:
    reached_the_end = False
    with deferred_interrupt() as interrupted:
        assert not interrupted()
        press_ctrl_c()
        press_ctrl_c()  # an impatient person
        assert interrupted()
        reached_the_end = True
    assert reached_the_end and interrupted()


def test_without_an_interrupt_the_answer_is_no() -> None:
    with deferred_interrupt() as interrupted:
        pass
    assert not interrupted()


def test_afterwards_ctrl_c_works_as_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()


def test_after_an_error_inside_ctrl_c_works_as_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="inside"), deferred_interrupt():
        raise RuntimeError("inside")
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_of_one_step_is_not_remembered_in_the_next() -> None:
    with deferred_interrupt() as first:
        press_ctrl_c()
    with deferred_interrupt() as second:
        pass
    assert first() and not second()


def test_off_the_main_thread_nothing_changes() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with deferred_interrupt() as interrupted:
            seen.extend([signal.getsignal(signal.SIGINT) is before, interrupted()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, False]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_after_the_patience_is_raised_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kit.interrupt.PATIENCE_S", 0.1)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as interrupted:
        press_ctrl_c()
        press_ctrl_c()  # at once: the same one
        assert interrupted() and "Once more stops now" in capfd.readouterr().err
        time.sleep(0.15)
        press_ctrl_c()
        raise AssertionError("not reached")
    assert signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr().err == ""  # said once
