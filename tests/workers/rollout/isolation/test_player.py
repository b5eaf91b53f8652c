"""What plays in the process of an environment, over a plain pair of sockets."""

import pickle
import socket
import threading

from tests.workers.rollout.isolation.hostile import Elsewhere
from workers.rollout.isolation.frames import load_plain, read_frame
from workers.rollout.isolation.player import play_all


def test_an_environment_that_can_not_be_built_is_reported_and_nothing_is_played():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=play_all, args=(theirs, pickle.dumps(Elsewhere())))
        thread.start()
        word, kinds, _, text, _ = load_plain(read_frame(ours))
        thread.join(5.0)
    assert not thread.is_alive()
    assert (word, kinds[0], text) == ("raised", "builtins:OSError", "not in this process")
