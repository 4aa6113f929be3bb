"""Signals that ask a run to stop."""

import os
import signal

import pytest

from accel_restore.utils.signals import listening

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")


@pytest.fixture(params=NAMES)
def number(request):
    """Return a signal that does nothing outside the test."""
    number = getattr(signal, request.param)
    former = signal.signal(number, lambda *_: None)
    yield number
    signal.signal(number, former)


def test_signal_is_a_request_to_stop_while_listening(number):
    former = signal.getsignal(number)
    with listening() as stop:
        stop.may_save = True
        assert not stop
        os.kill(os.getpid(), number)
        assert stop.signal == number
    assert signal.getsignal(number) is former


def test_sighup_that_nohup_ignores_stays_ignored():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as stop:
            stop.may_save = True
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
            os.kill(os.getpid(), signal.SIGUSR1)  # the control
            assert stop.signal == signal.SIGUSR1
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)
