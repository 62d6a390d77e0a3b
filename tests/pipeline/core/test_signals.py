"""Ctrl-C, once and twice."""

from __future__ import annotations

import signal
import threading

import pytest

from pipeline.core.signals import ENDS, first_interrupt, handlers_kept


@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
def test_the_first_one_stops_and_the_second_one_interrupts(number: signal.Signals) -> None:
    outside = signal.signal(number, signal.SIG_DFL)  # nohup, or a shell, may have it ignored for the tests themselves
    calls: list[str] = []
    try:
        with first_interrupt(lambda: calls.append("stop")) as seen:
            assert not seen
            signal.raise_signal(number)
            assert seen == [number] and calls == ["stop"]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
            assert calls == ["stop"]
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, outside)


def test_what_is_ignored_stays_so() -> None:
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with first_interrupt(lambda: None) as seen:
            signal.raise_signal(signal.SIGHUP)
            assert seen == [] and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_of_libraries_do_not_stay() -> None:
    calls: list[int] = []
    with first_interrupt(lambda: calls.append(1)):
        with handlers_kept():
            signal.signal(signal.SIGTERM, lambda number, frame: calls.append(2))
        signal.raise_signal(signal.SIGTERM)
    assert calls == [1]


def test_another_thread_than_the_main_one_is_left_alone() -> None:
    before, found = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with first_interrupt(lambda: None) as seen:
            found.append((list(seen), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [([], before)]
