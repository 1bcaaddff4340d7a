from __future__ import annotations

import select
import signal
import threading

import pytest

from layerstore.cli import signals
from layerstore.cli.signals import Stopped, stopping_on_signals, wake_descriptor


@pytest.fixture(autouse=True)
def _fresh_wake_pipe() -> None:
    signals._wake_pipe.cache_clear()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_raised_once_and_wakes_readers(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stopping_on_signals():
        assert select.select([wake_descriptor()], [], [], 0)[0] == []
        with pytest.raises(Stopped) as stop:
            signal.raise_signal(number)
        assert stop.value.exit_code == 128 + number
        assert select.select([wake_descriptor()], [], [], 0)[0] == [wake_descriptor()]
        # The clean-up of the first is not torn by an impatient second.
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_a_later_signal_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_PATIENCE_S", 0.0)
    with stopping_on_signals():
        for _ in range(3):
            with pytest.raises(Stopped):
                signal.raise_signal(signal.SIGTERM)


def test_what_the_parent_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_on_signals():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_elsewhere_than_in_the_main_thread_signals_are_left_alone() -> None:
    handlers = []

    def run() -> None:
        with stopping_on_signals():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
