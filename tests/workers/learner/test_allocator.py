"""The allocator with which a rank on CPUs starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.learner import allocator
from workers.learner.allocator import allocator_environment

KEEPS = "dirty_decay_ms:-1,muzzy_decay_ms:-1"


def test_a_process_with_these_variables_allocates_by_jemalloc():
    program = "print('jemalloc' in open('/proc/self/maps').read())"
    plain = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "GLIBC_TUNABLES")}
    for variables, said in (({}, "False"), (allocator_environment(plain), "True")):
        command = [sys.executable, "-S", "-c", program]
        done = subprocess.run(command, env=plain | variables, capture_output=True, text=True)
        assert (done.stdout.strip(), done.stderr) == (said, "")


def test_what_the_user_loads_ahead_comes_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocator, "jemalloc", lambda: Path("/ray/libjemalloc.so"))
    glibc = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}  # where that file is not
    jemalloc = {"LD_PRELOAD": "/ray/libjemalloc.so", "MALLOC_CONF": KEEPS}
    assert allocator_environment({}) == glibc | jemalloc
    given = {"LD_PRELOAD": "/lib/libtcmalloc.so", "MALLOC_CONF": "narenas:1"}
    ahead = {"LD_PRELOAD": "/lib/libtcmalloc.so:/ray/libjemalloc.so"}
    assert allocator_environment(given) == glibc | ahead
    assert allocator_environment({"GLIBC_TUNABLES": "glibc.malloc.check=3"}) == {}


def test_glibc_is_tuned_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocator, "jemalloc", lambda: None)
    assert allocator_environment({}) == {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
