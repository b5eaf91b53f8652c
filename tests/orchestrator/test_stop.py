"""A signal during training is a request; a second one is an order; outside it is not ours."""

import os
import signal

import pytest

from orchestrator.stop import EXIT_CODE, StoppedError, StopRequest


def send(number):
    os.kill(os.getpid(), number)


def test_the_first_signal_asks_and_the_second_exits():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        stop.check()
        send(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(SystemExit) as caught:
            send(signal.SIGTERM)
    assert caught.value.code == EXIT_CODE == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_asks_too_and_a_second_one_interrupts():
    with StopRequest() as stop:
        send(signal.SIGINT)
        with pytest.raises(StoppedError) as caught:
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert caught.value.exit_code == 130


def test_it_says_what_is_waited_for(capfd):
    with StopRequest() as stop:
        stop.activity.begin("step 5 of 9")
        send(signal.SIGTERM)
        with pytest.raises(StoppedError, match="stopped in step 5 of 9") as caught:
            stop.check()
    assert caught.value.exit_code == 143
    said = capfd.readouterr().err
    assert said.startswith("asked to stop in step 5 of 9: what is sampled is given back, ")
    assert said.count("\n") == 1
