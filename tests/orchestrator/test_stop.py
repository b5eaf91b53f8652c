"""A SIGTERM during training is a request; a second one is an order; outside it is not ours."""

import os
import signal

import pytest

from orchestrator.stop import EXIT_CODE, StopRequest


def test_the_first_signal_asks_and_the_second_exits():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(SystemExit) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == EXIT_CODE == 143
    assert signal.getsignal(signal.SIGTERM) is before
