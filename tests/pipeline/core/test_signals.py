"""Ctrl-C, once and twice."""

from __future__ import annotations

import signal
import threading

import pytest

from pipeline.core.signals import first_interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_one_stops_and_the_second_one_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    calls: list[str] = []
    with first_interrupt(lambda: calls.append("stop")) as seen:
        assert not seen
        signal.raise_signal(number)
        assert seen == [number] and calls == ["stop"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert calls == ["stop"]
    assert signal.getsignal(number) is before


def test_another_thread_than_the_main_one_is_left_alone() -> None:
    before, found = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with first_interrupt(lambda: None) as seen:
            found.append((list(seen), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [([], before)]
